"""Spans as OpenTelemetry has them, sent by OTLP over HTTP. Loaded only when that is asked for.

The SDK reads its standard environment: OTEL_EXPORTER_OTLP_*, OTEL_RESOURCE_ATTRIBUTES,
OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_BSP_*. What cannot be sent is lost, and holds up
nothing.
"""

import contextlib
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from duckmesh.telemetry import current_trace_id
from duckmesh.tracing import Attribute, Span, span_of

_TRACE_ID: Final = re.compile(r"(?!0{32})[0-9a-f]{32}")
_END_SECONDS: Final = 2.0


class _CallersIds:
    """A trace that begins here has the trace id that the log and the answer have."""

    def __init__(self) -> None:
        self._random = RandomIdGenerator()

    def generate_span_id(self) -> int:
        return int(self._random.generate_span_id())

    def generate_trace_id(self) -> int:
        bound = current_trace_id()
        if bound is not None and _TRACE_ID.fullmatch(bound):
            return int(bound, 16)
        return int(self._random.generate_trace_id())

    def is_trace_id_random(self) -> bool:
        # A caller may have chosen it.
        return False


class RecordedSpan(Span):
    """A span of OpenTelemetry."""

    def __init__(self, recorded: trace.Span) -> None:
        self._recorded = recorded
        self._lock = threading.Lock()
        self._ended = False

    def note(self, **attributes: Attribute) -> None:
        self._recorded.set_attributes(_named(attributes))

    def end(self, code: str = "OK") -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
        if code != "OK":
            self._recorded.set_attribute("duckmesh.error_code", code)
            self._recorded.set_status(Status(StatusCode.ERROR, code))
        self._recorded.end()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        mark = context.attach(trace.set_span_in_context(self._recorded))
        try:
            yield
        finally:
            context.detach(mark)

    def carried(self, trace_id: str | None) -> str | None:
        known = self._recorded.get_span_context()
        if trace_id is None or f"{known.trace_id:032x}" != trace_id:
            # The caller's own form of a trace id is no name of a span.
            return trace_id
        return f"{trace_id}-{known.span_id:016x}"


class OpenTelemetry:
    """Records spans, and sends them in batches from a thread of its own."""

    def __init__(
        self, service: str, endpoint: str | None, environment: Mapping[str, str] = os.environ
    ) -> None:
        """`endpoint` is the collector's address; None leaves it to the environment."""
        named = "OTEL_SERVICE_NAME" in environment or SERVICE_NAME in environment.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        )
        resource = Resource.create({} if named else {SERVICE_NAME: f"duckmesh-{service}"})
        url = None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces"
        # Typed so that the check of types needs no SDK.
        ids: Any = _CallersIds()
        self._provider = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        self._tracer = self._provider.get_tracer("duckmesh")
        self._propagator = TraceContextTextMapPropagator()

    def begin(
        self, name: str, *, links: Sequence[str], attributes: dict[str, Attribute]
    ) -> RecordedSpan:
        known = {found: None for each in links if (found := span_of(each)) is not None}
        return RecordedSpan(
            self._tracer.start_span(
                name, attributes=_named(attributes), links=[_link(*each) for each in known]
            )
        )

    @contextlib.contextmanager
    def arriving(self, traceparent: str) -> Iterator[None]:
        mark = context.attach(self._propagator.extract({"traceparent": traceparent}))
        try:
            yield
        finally:
            context.detach(mark)

    def close(self) -> None:
        """Send what is left, for two seconds at most."""
        # The exporter's own retries may outlast any limit that it is given.
        last = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        last.start()
        last.join(_END_SECONDS)


def _named(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    return {f"duckmesh.{name}": value for name, value in attributes.items()}


def _link(trace_id: str, span_id: str) -> Link:
    flags = TraceFlags(TraceFlags.SAMPLED)
    linked = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=flags)
    return Link(NonRecordingSpan(linked).get_span_context())
