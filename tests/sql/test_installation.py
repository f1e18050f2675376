"""What a worker's key can learn of the installation."""

import asyncpg
import pytest

from processor.rpc import SCHEMA_VERSION
from tests.sql.harness import NOON


@pytest.mark.parametrize("role", ["service_role", "job_processor"])
async def test_a_worker_learns_that_all_is_well(project, role):
    told = await project.call("check_installation", by=role)
    assert told.pop("now") == NOON.isoformat()
    assert told.pop("wal_level") in {"logical", "replica"}
    assert isinstance(told.pop("broadcast"), bool)
    assert told == {"schema_version": SCHEMA_VERSION, "role": role, "problems": []}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("alter table public.jobs disable row level security", "row level security of public.jobs is off"),
        ("alter publication supabase_realtime drop table public.jobs", "not in the publication"),
        ("grant select on public.jobs to anon", "open to the world"),
    ],
)
async def test_a_worker_learns_what_is_badly_wrong(project, damage, says):
    await project.connection.execute(damage)
    [problem] = (await project.call("check_installation", by="service_role"))["problems"]
    assert says in problem


@pytest.mark.parametrize("role", ["anon", "authenticated"])
async def test_nobody_else_learns_anything(project, role):
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await project.call("check_installation", by=role)
