"""Spans of a real daemon, as a collector gets them."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests import places


class Place(places.Place):
    """A place whose daemons trace."""

    target = "tests.apps.behaviours:app"

    def environment(self, **settings: str) -> dict[str, str]:
        return super().environment(PROCESSOR_TRACES="true", **settings)


class Collector:
    """Takes OTLP over HTTP, and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, name="collector")
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def spans(self) -> list:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


async def test_an_attempt_is_a_span_that_arrives_before_the_daemon_has_ended(
    stack, service, eventually, collector: Collector
) -> None:
    place = Place(stack, service, eventually)
    async with place.daemon(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as daemon:
        await daemon.ready()
        job_id = await place.create("end", {"how": "code"})
        await place.becomes(job_id, "failed")
        daemon.process.terminate()
        assert await daemon.ended() == 0
    spans = {span.name: span for span in collector.spans()}
    whole = spans[f"process {place.queue}"]
    told = {pair.key: pair.value.string_value for pair in whole.attributes}
    assert told["messaging.message.id"] == job_id
    assert (told["job.outcome"], told["error.type"]) == ("failed", "CARD_TOO_LONG")
    assert spans["handle"].parent_span_id == spans["settle"].parent_span_id == whole.span_id


async def test_a_collector_that_is_away_costs_no_job(stack, service, eventually) -> None:
    place = Place(stack, service, eventually)
    async with place.daemon(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9") as daemon:
        await daemon.ready()
        assert (await place.do("greet", {"name": "x"}))["status"] == "completed"
        daemon.process.terminate()
        assert await daemon.ended(within=30) == 0
