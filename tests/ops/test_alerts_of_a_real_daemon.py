"""What a real daemon shows while it fails, loses the project and recovers, judged by the rules.

Each scrape stands for a minute, so that half an hour of alerts takes seconds.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import places
from tests.faults import FaultProxy
from tests.ops.test_prometheus_rules import RULES, complaints

FAILURES = ("ProcessorJobsFail",)
OUTAGE = ("ProcessorApiUnreachable", "ProcessorRealtimeDown", "ProcessorSpoolNotEmpty")


class Place(places.Place):
    target = "tests.apps.behaviours:app"


class Recording:
    """The series of one daemon, a value for each scrape."""

    def __init__(self, http: httpx.AsyncClient, url: str) -> None:
        self.scrapes = 0
        self._http, self._url = http, url
        self._series: dict[str, list[str]] = {}
        self._now: dict[str, float] = {}

    async def scrape(self, times: int = 1, *, every: float = 0.0) -> None:
        for _ in range(times):
            answer = await self._http.get(self._url)
            assert answer.status_code == 200
            self._now = {}
            for family in text_string_to_metric_families(answer.text):
                for name, labels, value, *_ in family.samples:
                    if name.startswith("processor_"):
                        named = {"job": "processor", "instance": "vm-1:9800", **labels}
                        key = ", ".join(f"{label}={json.dumps(text)}" for label, text in named.items())
                        self._now[f"{name}{{{key}}}"] = value
            for series, values in self._series.items():
                if series not in self._now:  # Prometheus marks what a target shows no more
                    values.append("stale" if values[-1] not in {"stale", "_"} else "_")
            for series, value in self._now.items():
                values = self._series.setdefault(series, ["_"] * self.scrapes)
                values.append(str(value))
            self.scrapes += 1
            await asyncio.sleep(every)

    def value(self, name: str) -> float:
        """Return the sum of a metric at the last scrape."""
        return sum(value for series, value in self._now.items() if series.startswith(f"{name}{{"))

    def judged(self, directory: Path, *expected: dict[str, object]) -> str:
        """Return what promtool has against these expectations."""
        series = [{"series": name, "values": " ".join(values)} for name, values in self._series.items()]
        case = {"interval": "1m", "input_series": series, "promql_expr_test": list(expected)}
        cases = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [case]}
        return complaints(directory, RULES, cases)


def firing(minute: int, asked: tuple[str, ...], *expected: str) -> dict[str, object]:
    """Expect that at this scrape these alerts fire of those asked for, and no other of them."""
    return {
        "eval_time": f"{minute}m",
        "expr": f'count by (alertname) (ALERTS{{alertstate="firing", alertname=~"{"|".join(asked)}"}})',
        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in expected],
    }


@pytest.fixture
async def proxy(stack) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(stack.url) as proxy:
        yield proxy


async def test_alerts_fire_while_a_daemon_is_in_trouble_and_end_with_it(
    stack, service, eventually, proxy, tmp_path
):
    place = Place(stack, service, eventually)
    settings = {
        "SUPABASE_URL": proxy.url,
        "PROCESSOR_SPOOL_DIR": str(tmp_path / "spool"),
        "PROCESSOR_HTTP_PORT": "0",
    }
    async with place.daemon(**settings) as daemon, httpx.AsyncClient(trust_env=False, timeout=30) as http:
        await daemon.ready()
        recording = Recording(http, (await daemon.event("daemon.listening"))["url"] + "/metrics")
        for kind, payload in (("greet", {"name": "Ada"}), ("end", {"how": "crash"})):
            await place.do(kind, payload, max_attempts=1)
        await recording.scrape(2)
        calm = recording.scrapes - 1

        for _ in range(6):
            for _ in range(2):
                await place.do("end", {"how": "crash"}, max_attempts=1)
            await recording.scrape()
        # when the tenth attempt has failed, and five minutes more
        failures = recording.scrapes - 1 + 6
        job = await place.create("wait", {"seconds": 0.5})
        await daemon.event("job.started", job_id=job)
        proxy.refuse()
        proxy.cut()
        await daemon.event("feed.mode", mode="polling", within=60)
        while recording.value("processor_spool_records") == 0:
            await recording.scrape(every=0.2)
        # a daemon that is refused asks ever more seldom: so long that it asks in between
        await recording.scrape(8, every=2)
        trouble = recording.scrapes - 1

        await proxy.heal()
        await place.ended(job)
        await eventually(lambda: daemon.all("feed.mode", mode="realtime")[1:], within=60)
        while recording.value("processor_spool_records"):
            await recording.scrape(every=0.2)
        await recording.scrape(25)

    everything = FAILURES + OUTAGE
    expected = [
        firing(calm, everything),
        firing(failures, FAILURES, *FAILURES),
        firing(trouble, OUTAGE, *OUTAGE),
        firing(recording.scrapes - 1, everything),
    ]
    assert recording.judged(tmp_path, *expected) == ""
    assert "ProcessorSpoolNotEmpty" in recording.judged(tmp_path, firing(trouble, OUTAGE))
