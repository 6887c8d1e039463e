"""Which traces a publication shows: its log line names them, its span links to them."""

import contextlib
from collections.abc import Iterator

import structlog

from catalog.snapshots import Snapshot
from duckmesh import tracing
from duckmesh.tracing import LINKS_MAX, Span
from ingest_bus.envelope import Claim

_LOG = structlog.get_logger()


def traces_of(claim: Claim) -> list[str]:
    """What the claim's envelopes carry of their traces, each once, in token order."""
    carried = (event.envelope.trace_id for event in claim.events)
    return list(dict.fromkeys(each for each in carried if each))


@contextlib.contextmanager
def publication(claim: Claim) -> Iterator[Span]:
    """The span of the block, which publishes the claim."""
    with tracing.span(
        "publication",
        links=traces_of(claim)[:LINKS_MAX],
        tenant_id=claim.tenant_id,
        events=len(claim.events),
        watermark=claim.last_token,
    ) as begun:
        yield begun


def tell_published(claim: Claim, born: Snapshot, span: Span) -> None:
    """The claim's snapshot is committed: say which traces are in it, the first of many."""
    span.note(snapshot_id=born.snapshot_id)
    traces = list(dict.fromkeys(map(tracing.trace_of, traces_of(claim))))
    _LOG.info(
        "published",
        tenant_id=claim.tenant_id,
        snapshot_id=born.snapshot_id,
        watermark=born.max_visibility_token,
        events=len(claim.events),
        traces=len(traces),
        trace_ids=traces[:LINKS_MAX],
    )
