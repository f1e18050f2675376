"""What `processor run` says, and how it ends, when it cannot work."""

import re
import socket
import time
from pathlib import Path

import asyncpg
import jwt
import pytest

from processor.rpc import SCHEMA_VERSION
from tests.daemons import Daemon

TARGET = "tests.apps.behaviours:app"


async def refusal(
    target: str, environment: dict[str, str], *arguments: str, within: float = 30.0
) -> tuple[int, str]:
    """Run the daemon to its end; return the exit code and what it said."""
    daemon = await Daemon.start(target, environment, *arguments)
    try:
        code = await daemon.ended(within=within)
    finally:
        await daemon.close()
    assert "Traceback" not in daemon.log()
    return code, "\n".join(daemon.text)


@pytest.fixture
def environment(stack) -> dict[str, str]:
    return {"SUPABASE_URL": stack.url, "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


async def test_missing_settings_are_listed_together() -> None:
    code, text = await refusal(TARGET, {})
    assert code == 2
    assert "SUPABASE_URL" in text
    assert "SUPABASE_SERVICE_ROLE_KEY" in text


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("tests.apps.behaviours", "like jobs:app"),
        ("tests.apps.nowhere:app", "There is no module 'tests.apps.nowhere'"),
        ("tests.apps.behaviours:ap", "Did you mean 'app'?"),
        ("tests.apps.behaviours:runs", "is a int, not a Processor. Did you mean tests.apps.behaviours:app?"),
    ],
)
async def test_a_wrong_target_teaches(environment: dict[str, str], target: str, says: str) -> None:
    code, text = await refusal(target, environment)
    assert (code, says in text) == (2, True), text


async def test_a_queue_without_a_handler_is_named_with_those_there_are(environment: dict[str, str]) -> None:
    code, text = await refusal(TARGET, {**environment, "TEST_PREFIX": "mine"}, "--queue", "yours")
    assert code == 2
    assert "yours" in text
    assert "mine" in text


async def test_a_key_signed_with_another_secret_is_refused_by_name(environment: dict[str, str]) -> None:
    token = jwt.encode({"role": "service_role", "exp": int(time.time()) + 3600}, "another-secret-" * 3)
    code, text = await refusal(TARGET, {**environment, "SUPABASE_SERVICE_ROLE_KEY": token})
    assert code == 1
    assert "SUPABASE_SERVICE_ROLE_KEY" in text
    assert token not in text


async def test_an_expired_key_is_called_expired(environment: dict[str, str], stack) -> None:
    token = jwt.encode({"role": "service_role", "exp": int(time.time()) - 3600}, stack.jwt_secret)
    code, text = await refusal(TARGET, {**environment, "SUPABASE_SERVICE_ROLE_KEY": token})
    assert code == 1
    assert "expired" in text
    assert "SUPABASE_SERVICE_ROLE_KEY" in text


async def test_the_public_key_is_recognised_before_any_request(environment: dict[str, str], stack) -> None:
    code, text = await refusal(TARGET, {**environment, "SUPABASE_SERVICE_ROLE_KEY": stack.anon_key})
    assert code == 2
    assert "public key" in text


async def test_an_address_where_nobody_listens_is_named(environment: dict[str, str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    code, text = await refusal(TARGET, {**environment, "SUPABASE_URL": url})
    assert code == 1
    assert url in text
    assert "SUPABASE_URL" in text


async def test_a_site_that_is_no_supabase_project_is_told_apart(environment: dict[str, str], stack) -> None:
    code, text = await refusal(TARGET, {**environment, "SUPABASE_URL": f"{stack.url}/nowhere"})
    assert code == 1
    assert "SUPABASE_URL" in text


async def test_a_port_that_is_taken_is_named(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        code, text = await refusal(TARGET, {**environment, "PROCESSOR_HTTP_PORT": port})
    assert code == 2
    assert "PROCESSOR_HTTP_PORT" in text
    assert port in text


async def test_a_project_without_the_schema_is_told_how_to_get_it(dev_process, tmp_path: Path) -> None:
    stack = dev_process("--data-dir", str(tmp_path / "data"), "--no-schema").ready()
    environment = {"SUPABASE_URL": stack.url, "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key}
    code, text = await refusal(TARGET, environment)
    assert code == 1
    assert "processor schema apply --database-url" in text


@pytest.mark.parametrize(
    ("function", "version", "mend"),
    [
        ("schema_version", SCHEMA_VERSION - 1, "processor schema apply"),
        ("oldest_worker_version", SCHEMA_VERSION + 1, "pip install --upgrade supabase-job-processor"),
    ],
)
async def test_a_schema_of_another_version_is_told_with_both_versions(
    environment: dict[str, str], admin: asyncpg.Connection, function: str, version: int, mend: str
) -> None:
    body = await admin.fetchval(f"select pg_get_functiondef('processor.{function}()'::regprocedure)")
    await admin.execute(re.sub(r"^  select \d+$", f"  select {version}", body, flags=re.MULTILINE))
    try:
        code, text = await refusal(TARGET, environment)
    finally:
        await admin.execute(body)
    assert code == 1
    assert str(version) in text
    assert f"needs {SCHEMA_VERSION}" in text
    assert mend in text
