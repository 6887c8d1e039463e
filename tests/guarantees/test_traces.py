"""A caller's trace goes with its write to the publication, and with its query to the log."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from pyarrow import flight

from flight_server import messages
from tests.processes import ProductProcess, Service, service, until

PARENT = "00f067aa0ba902b7"
FLIGHT_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HTTP_TRACE = "0af7651916cd43dd8448eb211c80319c"
QUERY_TRACE = "5b8aa5a2d2c872e8321cf37308d69df2"
JSON_LOG = {"DUCKMESH_LOGGING_FORMAT": "json", "DUCKMESH_QUERY_WORKERS": "0"}


def parent(trace: str) -> dict[str, str]:
    return {"traceparent": f"00-{trace}-{PARENT}-01"}


def headers(trace: str) -> flight.FlightCallOptions:
    sent = [(name.encode(), value.encode()) for name, value in parent(trace).items()]
    return flight.FlightCallOptions(headers=sent, timeout=60)


def put(uri: str, trace: str) -> int:
    """Write one batch over Flight; its token."""
    batch = pa.record_batch({"v": pa.array([1], pa.int64())})
    with flight.connect(uri) as client:
        descriptor = flight.FlightDescriptor.for_path("t")
        writer, reader = client.do_put(descriptor, batch.schema, headers(trace))
        with writer:
            writer.write_batch(batch)
            writer.done_writing()
            answer = json.loads(reader.read().to_pybytes())
    token: int = answer["visibility_token"]
    return token


def post(door: str, trace: str) -> int:
    answer = httpx.post(
        f"{door}/v1/ingest/t",
        json={"records": [{"payload": {"v": 2}}]},
        headers=parent(trace),
        timeout=60,
    )
    token: int = answer.json()["max_visibility_token"]
    return token


def written_by_both_doors(running: Service) -> tuple[str, ProductProcess]:
    """Two writes, a query that shows them, and a refused one; the URI, and the coordinator."""
    _, uri = running.serve()
    door = running.http_of(uri)
    made = {"name": "t", "schema": [{"name": "v", "type": "bigint"}]}
    assert httpx.post(f"{door}/v1/tables", json=made, timeout=60).status_code == 201
    last = max(put(uri, FLIGHT_TRACE), post(door, HTTP_TRACE))
    coordinator = running.coordinate("c1")
    command = messages.wrap(messages.sql("CommandStatementQuery")(query="SELECT sum(v) FROM t"))
    options = flight.FlightCallOptions(
        headers=[
            (b"x-duckmesh-min-visibility-token", str(last).encode()),
            (b"x-duckmesh-consistency-timeout-ms", b"30000"),
            (b"traceparent", parent(QUERY_TRACE)["traceparent"].encode()),
        ],
        timeout=60,
    )
    with flight.connect(uri) as client:
        info = client.get_flight_info(flight.FlightDescriptor.for_command(command), options)
        assert client.do_get(info.endpoints[0].ticket, options).read_all()[0].to_pylist() == [3]
    return uri, coordinator


def records(process: ProductProcess, event: str) -> list[dict[str, Any]]:
    lines = process.log.read_text(errors="replace").splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return [each for each in found if each["event"] == event]


@pytest.fixture
def running(database_dsn: str, tmp_path: Path) -> Iterator[Service]:
    with service(database_dsn, tmp_path, **JSON_LOG) as processes:
        yield processes


def test_a_publications_log_line_names_the_traces_of_its_writes(running: Service) -> None:
    _, coordinator = written_by_both_doors(running)
    until(lambda: sum(each["events"] for each in records(coordinator, "published")) == 2)
    lines = records(coordinator, "published")
    named = {trace for each in lines for trace in each["trace_ids"]}
    assert named == {FLIGHT_TRACE, HTTP_TRACE}
    assert all(each["tenant_id"] > 0 and each["snapshot_id"] > 0 for each in lines)


def test_what_either_door_refuses_is_logged_with_tenant_and_trace(running: Service) -> None:
    process, uri = running.serve()
    with flight.connect(uri) as client:
        command = messages.wrap(messages.sql("CommandStatementQuery")(query="FROM nothing"))
        with pytest.raises(pa.ArrowException):
            client.get_flight_info(
                flight.FlightDescriptor.for_command(command), headers(FLIGHT_TRACE)
            )
    httpx.post(
        f"{running.http_of(uri)}/v1/query",
        json={"sql": "FROM nothing"},
        headers=parent(HTTP_TRACE),
        timeout=60,
    )
    until(lambda: len(records(process, "request_refused")) == 1)
    (by_flight,) = records(process, "rpc_refused")
    (by_http,) = records(process, "request_refused")
    assert (by_flight["trace_id"], by_http["trace_id"]) == (FLIGHT_TRACE, HTTP_TRACE)
    assert by_flight["tenant_id"] == by_http["tenant_id"] > 0
    assert by_flight["error_code"] == by_http["error_code"] == "TABLE_NOT_FOUND"


# --- spans


_EVERY_ROOM: str = """
import sys
import command_line.coordinate, command_line.serve
from duckmesh.exporting import exporting
from duckmesh.settings import TelemetrySettings
from duckmesh import tracing
with exporting(TelemetrySettings(), service="serve"):
    with tracing.span("ingest") as span:
        assert span is tracing.NOTHING and span.carried("t") == "t"
loaded = ("opentelemetry.sdk", "opentelemetry.exporter", "duckmesh.open_telemetry")
print([name for name in sys.modules if name.startswith(loaded)])
"""


@pytest.mark.parametrize(
    "forbidding", [{}, {"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}]
)
def test_off_it_loads_nothing(forbidding: dict[str, str]) -> None:
    environment = dict(forbidding)
    if forbidding:
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:1"
    done = subprocess.run(
        [sys.executable, "-c", _EVERY_ROOM],
        env={"PYTHONPATH": ":".join(sys.path), **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[]\n"


class Collector:
    """Takes spans as an OTLP collector does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[tuple[str, Any]] = []
        self.url = ""

    def take(self, content: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

        request = trace_service_pb2.ExportTraceServiceRequest.FromString(content)
        with self._lock:
            for resource in request.resource_spans:
                (named,) = [
                    each.value.string_value
                    for each in resource.resource.attributes
                    if each.key == "service.name"
                ]
                self._spans += [
                    (named, span) for scope in resource.scope_spans for span in scope.spans
                ]

    def named(self, name: str) -> list[tuple[str, Any]]:
        with self._lock:
            return [each for each in self._spans if each[1].name == name]


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            content = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                content = gzip.decompress(content)
            collector.take(content)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def by_setting(url: str) -> dict[str, str]:
    return {"DUCKMESH_TELEMETRY_OTLP_ENDPOINT": url}


def by_environment(url: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": url}


@pytest.mark.parametrize("configured", [by_setting, by_environment])
def test_spans_lead_from_both_doors_through_the_publication_to_the_query(
    database_dsn: str, tmp_path: Path, configured: Callable[[str], dict[str, str]]
) -> None:
    pytest.importorskip("opentelemetry.sdk")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with (
        collecting() as collector,
        service(
            database_dsn,
            tmp_path,
            **JSON_LOG,
            **configured(collector.url),
            OTEL_BSP_SCHEDULE_DELAY="100",
        ) as running,
    ):
        written_by_both_doors(running)
        until(
            lambda: (
                len(collector.named("duckmesh.query")) == 1
                and len(collector.named("duckmesh.ingest")) == 2
                and sum(len(span.links) for _, span in collector.named("duckmesh.publication")) == 2
            )
        )
        ingests = {span.trace_id.hex(): span for _, span in collector.named("duckmesh.ingest")}
        assert set(ingests) == {FLIGHT_TRACE, HTTP_TRACE}
        assert {span.parent_span_id.hex() for span in ingests.values()} == {PARENT}
        commits = collector.named("duckmesh.commit")
        assert {span.parent_span_id for _, span in commits} <= {
            span.span_id for span in ingests.values()
        }
        links = {
            (link.trace_id.hex(), link.span_id)
            for _, span in collector.named("duckmesh.publication")
            for link in span.links
        }
        assert links == {(trace, span.span_id) for trace, span in ingests.items()}
        ((server, query),) = collector.named("duckmesh.query")
        assert (query.trace_id.hex(), query.parent_span_id.hex()) == (QUERY_TRACE, PARENT)
        assert server == "duckmesh-serve"
        assert {name for name, _ in collector.named("duckmesh.publication")} == {
            "duckmesh-coordinate"
        }


def test_without_the_library_it_says_what_to_install(tmp_path: Path) -> None:
    # A part of the namespace package that comes before the installed one, if there is one.
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "sdk.py").write_text("raise ImportError('hidden')")
    done = subprocess.run(
        [sys.executable, "-m", "command_line.main", "serve"],
        env={
            "PYTHONPATH": ":".join([str(tmp_path), *sys.path]),
            "DUCKMESH_TELEMETRY_OTLP_ENDPOINT": "http://127.0.0.1:4318",
            "HOME": str(tmp_path),
        },
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode != 0
    assert "install duckmesh[otel]" in done.stderr
    assert "Traceback" not in done.stderr
