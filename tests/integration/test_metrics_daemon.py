"""What Prometheus reads of real daemons: before and after jobs, failures, and a lost feed."""

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics

from tests import places
from tests.daemons import Daemon
from tests.faults import FaultProxy

ROOT = Path(__file__).parents[2]
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Place(places.Place):
    """A place whose daemons show metrics."""

    target = "tests.apps.behaviours:app"

    def environment(self, **settings: str) -> dict[str, str]:
        # whoever is killed has the figures of the database for as long as its lease
        return super().environment(PROCESSOR_HTTP_PORT="0", PROCESSOR_LEASE_SECONDS="5", **settings)


class Gauge:
    """Reads what one daemon shows."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def text(self, accept: str = "text/plain") -> str:
        async with httpx.AsyncClient(timeout=20) as http:
            answer = await http.get(f"{self.url}/metrics", headers={"accept": accept})
        assert answer.status_code == 200
        return answer.text

    async def families(self) -> dict[str, Any]:
        return {family.name: family for family in parser.text_string_to_metric_families(await self.text())}

    async def value(self, name: str, **labels: str) -> float | None:
        """Return the sum of the series of this name with these labels; None: there is none."""
        found = [
            sample.value
            for family in (await self.families()).values()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else None

    async def becomes(self, value: float | None, name: str, within: float = 30.0, **labels: str) -> None:
        async with asyncio.timeout(within):
            while (seen := await self.value(name, **labels)) != value:
                assert seen is None or value is None or seen <= value or "total" not in name, (name, seen)
                await asyncio.sleep(0.1)


@pytest.fixture
def place(stack, service, eventually) -> Place:
    return Place(stack, service, eventually)


@asynccontextmanager
async def measured(place: Place, **settings: str) -> AsyncIterator[tuple[Daemon, Gauge]]:
    async with place.daemon(**settings) as daemon:
        await daemon.ready()
        yield daemon, Gauge((await daemon.event("daemon.listening"))["url"])


async def test_jobs_are_counted_by_what_became_of_them(place: Place) -> None:
    async with measured(place) as (_daemon, gauge):
        of = {"queue": place.queue}
        assert await gauge.value("processor_jobs_claimed_total", **of) is None
        await place.do("greet", {"name": "x"})
        for how in ("retry", "snooze", "cancel", "discard", "crash", "code"):
            await place.create("end", {"how": how}, max_attempts=2 if how == "retry" else 1)
        items = [{"key": "a"}, {"key": "b", "payload": {"fail": "for good"}}]
        await place.create("items", items=items)
        greet, end = f"{place.queue}.greet", f"{place.queue}.end"
        finished = "processor_jobs_finished_total"
        await gauge.becomes(1, finished, kind=greet, outcome="completed")
        await gauge.becomes(2, finished, kind=end, outcome="completed")
        await gauge.becomes(1, finished, kind=end, outcome="retried")
        await gauge.becomes(1, finished, kind=end, outcome="snoozed")
        await gauge.becomes(1, finished, kind=end, outcome="cancelled")
        await gauge.becomes(3, finished, kind=end, outcome="failed")
        await gauge.becomes(1, finished, outcome="partial")
        await gauge.becomes(10, "processor_jobs_claimed_total", **of)
        assert await gauge.value("processor_job_run_seconds_count", **of) == 10
        assert await gauge.value("processor_job_pickup_seconds_count", **of) == 10
        errors = {
            sample.labels["code"]: sample.value
            for sample in (await gauge.families())["processor_job_errors"].samples
            if sample.name == "processor_job_errors_total" and sample.labels["kind"] == end
        }
        assert errors["CARD_TOO_LONG"] == errors["HANDLER_CRASHED"] == 1
        assert sum(errors.values()) == 4
        assert await gauge.value("processor_job_items_total", outcome="completed") == 1
        assert await gauge.value("processor_job_items_total", outcome="failed") == 1
        assert await gauge.value("processor_api_requests_total", function="claim_jobs", result="ok") > 0
        assert await gauge.value("processor_claims_total", wake="realtime", found="jobs") > 0
        assert await gauge.value("processor_ready") == 1
        assert await gauge.value("process_resident_memory_bytes") > 10_000_000
        assert 0 < await gauge.value("processor_lease_left_seconds") <= 5


async def test_a_lost_feed_shows_and_so_does_its_return(stack, place: Place) -> None:
    async with FaultProxy(stack.url) as proxy, measured(place, SUPABASE_URL=proxy.url) as (daemon, gauge):
        assert await gauge.value("processor_feed_mode", mode="realtime") == 1
        assert await gauge.value("processor_feed_connections_total") == 1
        proxy.refuse("websocket")
        proxy.cut("websocket")
        await daemon.event("feed.mode", mode="polling")
        assert await gauge.value("processor_feed_mode", mode="realtime") == 0
        assert await gauge.value("processor_feed_mode", mode="polling") == 1
        assert await gauge.value("processor_feed_endings_total") >= 1
        await place.do("greet", {"name": "x"})
        assert await gauge.value("processor_feed_wakes_total", source="polling") >= 1
        spent = await gauge.value("processor_feed_mode_seconds_total", mode="polling")
        live = await gauge.value("processor_feed_mode_seconds_total", mode="realtime")
        await proxy.heal()
        await gauge.becomes(1, "processor_feed_mode", mode="realtime")
        assert await gauge.value("processor_feed_connections_total") >= 2
        assert await gauge.value("processor_feed_mode_seconds_total", mode="polling") > spent
        assert await gauge.value("processor_feed_mode_seconds_total", mode="realtime") >= live


async def test_an_api_that_is_away_shows_in_requests_and_in_what_waits_on_disk(
    stack, place: Place, tmp_path: Path
) -> None:
    async with FaultProxy(stack.url) as proxy:
        there = {"SUPABASE_URL": proxy.url, "PROCESSOR_SPOOL_DIR": str(tmp_path)}
        async with measured(place, **there) as (daemon, gauge):
            job_id = await place.create("wait", {"seconds": 0.5})
            await daemon.event("job.started", job_id=job_id)
            proxy.refuse("http")
            proxy.cut("http")
            await gauge.becomes(1, "processor_spool_records")
            assert await gauge.value("processor_spool_bytes") > 100
            assert await gauge.value("processor_spool_oldest_seconds") > 0
            assert await gauge.value("processor_outcomes_waiting", pile="jobs") == 1
            assert await gauge.value("processor_api_requests_total", result="unreachable") >= 1
            await proxy.heal()
            await gauge.becomes(0, "processor_spool_records")
            await place.becomes(job_id, "completed")


async def test_one_daemon_tells_of_the_database_and_another_takes_over(place: Place) -> None:
    async with measured(place) as (first, one), measured(place) as (_second, two):
        await one.becomes(1, "processor_database_up", within=60)
        assert await two.value("processor_database_up") is None
        for state in ("due", "scheduled", "waiting", "processing"):
            assert await one.value("processor_database_queue_jobs", queue=place.queue, state=state) == 0
        assert await one.value("processor_database_workers", state="live") >= 2
        assert await one.value("processor_database_credit_faults") is not None
        first.process.terminate()
        assert await first.ended() == 0
        async with measured(place) as (_third, three):  # who has not been told yet to come back later
            assert await three.value("processor_database_up") == 1


async def test_the_text_is_as_prometheus_wants_it(place: Place) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool: on Debian it is in the package prometheus")
    async with measured(place) as (_daemon, gauge):
        await place.do("items", items=[{"key": "a"}])
        await place.do("end", {"how": "crash"}, max_attempts=1)
        said = await asyncio.to_thread(
            subprocess.run,
            [promtool, "check", "metrics"],
            input=(await gauge.text()).encode(),
            capture_output=True,
            check=False,
        )
    assert (said.returncode, said.stdout.decode(), said.stderr.decode()) == (0, "", "")


async def test_openmetrics_is_spoken_too(place: Place) -> None:
    async with measured(place) as (_daemon, gauge):
        families = list(openmetrics.text_string_to_metric_families(await gauge.text(OPENMETRICS)))
    assert "processor_feed_wakes" in {family.name for family in families}


async def test_the_table_names_all_that_there_is_and_nothing_else(place: Place) -> None:
    told = dict(
        re.findall(r"^\| `(processor_\w+)` \| (\w+) \|", (ROOT / "ops/METRICS.md").read_text(), re.MULTILINE)
    )
    assert len(told) > 30
    async with measured(place) as (_daemon, gauge):
        await place.do("greet", {"name": "x"})
        families = await gauge.families()
    shown = {
        name + ("_total" if family.type == "counter" else ""): family.type
        for name, family in families.items()
        if name.startswith("processor_")
    }
    assert shown.items() <= told.items()
    # of the database by another daemon, maybe; of MQTT where there is a broker, which has tests of its own
    ours = {name for name in told if not name.startswith(("processor_database_", "processor_mqtt_"))}
    assert ours <= shown.keys()


async def test_there_are_none_where_they_are_switched_off(place: Place) -> None:
    async with (
        measured(place, PROCESSOR_METRICS="false") as (_daemon, gauge),
        httpx.AsyncClient() as http,
    ):
        assert (await http.get(f"{gauge.url}/metrics")).status_code == 404
        assert (await http.get(f"{gauge.url}/healthz")).status_code == 200
