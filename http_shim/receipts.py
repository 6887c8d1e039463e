"""What an ingest is answered with, and the wait for its rows to be visible."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from starlette.responses import Response

from duckmesh.errors import NotYetVisible
from duckmesh.identifiers import SnapshotId
from gateway.identity import Identity
from http_shim.answers import json_response
from http_shim.calls import Call
from http_shim.rooms import Door
from ingest_bus.envelope import Receipt

ACCEPTED_STATUS = 202
"""The rows are durable, and not visible within the time that the request allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a request wants to know beyond that its rows were accepted."""

    wait: bool = False
    timeout: timedelta | None = None
    records: bool = False
    """A result for each record."""


@dataclass(frozen=True, slots=True)
class PlacedReceipt:
    """The receipt of one write, and which records of the request it holds."""

    receipt: Receipt
    records: Sequence[int] | None
    """None for a file: its records are not listed."""


def answered(
    door: Door, call: Call, who: Identity, wish: Wish, placed: Sequence[PlacedReceipt]
) -> Response:
    """The answer to accepted writes. Blocks when the request waits; the writes stand anyway."""
    receipts = [each.receipt for each in placed]
    accepted = sum(each.row_count for each in receipts if each.inserted)
    duplicates = sum(each.row_count for each in receipts if not each.inserted)
    token = max(each.visibility_token for each in receipts)
    snapshot_id, late = _awaited(door, who, wish, receipts)
    answer: dict[str, Any] = {
        "accepted_count": accepted,
        "duplicate_count": duplicates,
        "max_visibility_token": token,
        "visible_snapshot_id": snapshot_id,
        "status": _status(duplicates, snapshot_id),
    }
    if late is not None:
        answer["wait"] = late.as_contract(call.trace_id)
    if wish.records:
        answer["results"] = _results(placed)
    status = 200 if late is None else ACCEPTED_STATUS
    headers = {"x-duckmesh-visibility-token": str(token)}
    return json_response(answer, status=status, headers=headers)


def _status(duplicates: int, snapshot_id: SnapshotId | None) -> str:
    if duplicates:
        return "partial_duplicate"
    return "accepted" if snapshot_id is None else "visible"


def _awaited(
    door: Door, who: Identity, wish: Wish, receipts: Sequence[Receipt]
) -> tuple[SnapshotId | None, NotYetVisible | None]:
    """The snapshot that shows the rows, or why there is none yet."""
    if not wish.wait:
        return None, None
    token = max(each.visibility_token for each in receipts)
    try:
        snapshot = door.rooms.reads.wait_until_visible(who, token, timeout=wish.timeout)
    except NotYetVisible as late:
        return None, late
    return snapshot.snapshot_id, None


def _results(placed: Sequence[PlacedReceipt]) -> list[dict[str, Any]]:
    """One entry for each record, in the request's order; one for a whole file."""
    entries = [
        {
            "record": record,
            "visibility_token": each.receipt.visibility_token,
            "duplicate": not each.receipt.inserted,
        }
        for each in placed
        for record in (each.records if each.records is not None else (None,))
    ]
    return sorted(entries, key=lambda entry: entry["record"] or 0)
