"""Sealed questions: what a client carries from one call to the next, and cannot change.

A sealed value is `version | expiry | payload | HMAC-SHA256`. The key of the HMAC is derived from
the secret and the purpose, so that a ticket never passes for a session. Nothing is stored: every
serving process with the same secret opens what another sealed, also after a restart. The payload
is signed and not encrypted: it holds nothing that its client did not say or may not know.
"""

import hashlib
import hmac
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Self

from duckmesh.errors import ErrorCode, Invalid
from duckmesh.identifiers import SnapshotId, TenantId
from duckmesh.tokens import VisibilityToken
from flight_server import messages

SECRET_MIN_BYTES: Final = 32
SEALED_MAX_BYTES: Final = 3 * 2**20
"""A handle or a ticket travels in one message, and clients refuse those of 4 MiB."""

_DEFLATED_FROM_BYTES: Final = 64 * 1024
_VERSION: Final = 1
_HEAD: Final = struct.Struct(">BQ")
_MAC_BYTES: Final = 32


class Purpose(StrEnum):
    """What a sealed value is for. It opens for no other purpose."""

    TICKET = "ticket"
    PREPARED = "prepared"
    SESSION = "session"


class Seal:
    """Signs values with one secret, and opens what was signed with it.

    Raises ValueError when the secret is shorter than SECRET_MIN_BYTES: a guessable secret would
    let a client write its own tenant.
    """

    def __init__(self, secret: bytes, *, now: Callable[[], float] = time.time) -> None:
        if len(secret) < SECRET_MIN_BYTES:
            raise ValueError(f"the sealing secret needs at least {SECRET_MIN_BYTES} bytes")
        self._now = now
        self._keys = {
            purpose: hmac.digest(secret, f"duckmesh/v{_VERSION}/{purpose}".encode(), hashlib.sha256)
            for purpose in Purpose
        }

    @property
    def now(self) -> datetime:
        """The wall clock of this seal. Serving processes agree on it to within the lifetimes."""
        return datetime.fromtimestamp(self._now(), UTC)

    def seal(self, purpose: Purpose, payload: bytes, *, lifetime: timedelta) -> bytes:
        """`payload`, signed, to be opened until `lifetime` has passed."""
        expires_at_ms = int((self._now() + lifetime.total_seconds()) * 1000)
        signed = _HEAD.pack(_VERSION, expires_at_ms) + payload
        return signed + self._mac(purpose, signed)

    def open(self, purpose: Purpose, sealed: bytes) -> bytes:
        """The payload of a value sealed for `purpose`.

        Raises Invalid (TICKET_INVALID) when a byte was changed, the value was cut, it was sealed
        for another purpose or with another secret, or it has expired.
        """
        signed, mac = sealed[:-_MAC_BYTES], sealed[-_MAC_BYTES:]
        if len(signed) < _HEAD.size or not hmac.compare_digest(mac, self._mac(purpose, signed)):
            raise _refused(purpose, "was not issued by this service, or was changed on its way")
        version, expires_at_ms = _HEAD.unpack_from(signed)
        if version != _VERSION:
            raise _refused(purpose, "is of another version")
        if expires_at_ms <= self._now() * 1000:
            raise _refused(purpose, "has expired")
        return signed[_HEAD.size :]

    def _mac(self, purpose: Purpose, signed: bytes) -> bytes:
        return hmac.digest(self._keys[purpose], signed, hashlib.sha256)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a statement did that has run already: its rows changed, and the token of its write."""

    row_count: int | None
    visibility_token: VisibilityToken | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedStatement:
    """One question, complete: any serving process answers it from these fields alone."""

    tenant_id: TenantId
    tenant: str
    sql: str
    parameters: bytes | None = None
    """The bound rows as an Arrow IPC stream."""
    snapshot_id: SnapshotId | None = None
    required_token: VisibilityToken | None = None
    asked_token: VisibilityToken | None = None
    """What the question asked to be visible: for the audit."""
    row_limit: int | None = None
    timeout: timedelta | None = None
    issued_at: datetime
    outcome: Outcome | None = None
    """Set when the statement has run: the ticket fetches this, and runs nothing."""
    transaction_id: bytes = b""
    """Of a prepared statement: the transaction that it was prepared in, which may be over."""
    ticket_id: bytes = b""
    """Names a ticket, and those that renew it. Empty in a prepared statement."""

    def sealed_by(self, seal: Seal, purpose: Purpose, *, lifetime: timedelta) -> bytes:
        """The bytes that a client carries."""
        message = messages.sealed("Statement")(
            tenant_id=self.tenant_id,
            tenant=self.tenant,
            sql=self.sql,
            parameters=self.parameters,
            snapshot_id=self.snapshot_id,
            required_token=self.required_token,
            asked_token=self.asked_token,
            row_limit=self.row_limit,
            timeout_ms=None if self.timeout is None else milliseconds(self.timeout),
            issued_at_ms=int(self.issued_at.timestamp() * 1000),
            transaction_id=self.transaction_id,
            ticket_id=self.ticket_id,
        )
        if self.outcome is not None:
            message.outcome.SetInParent()
            if self.outcome.row_count is not None:
                message.outcome.row_count = self.outcome.row_count
            if self.outcome.visibility_token is not None:
                message.outcome.visibility_token = self.outcome.visibility_token
        return seal.seal(purpose, _packed(message), lifetime=lifetime)

    @classmethod
    def opened_by(cls, seal: Seal, purpose: Purpose, sealed: bytes, *, tenant_id: TenantId) -> Self:
        """The statement that `sealed` carries, when it belongs to the tenant who presents it.

        Raises Invalid (TICKET_INVALID) otherwise, and as `Seal.open` does. The answer to another
        tenant's ticket is the answer to a forged one.
        """
        message = _unpacked(seal.open(purpose, sealed))
        if message.tenant_id != tenant_id:
            raise _refused(purpose, "was not issued by this service, or was changed on its way")
        snapshot_id, token = _number(message, "snapshot_id"), _number(message, "required_token")
        timeout_ms, asked = _number(message, "timeout_ms"), _number(message, "asked_token")
        return cls(
            tenant_id=TenantId(message.tenant_id),
            tenant=message.tenant,
            sql=message.sql,
            parameters=message.parameters if message.HasField("parameters") else None,
            snapshot_id=None if snapshot_id is None else SnapshotId(snapshot_id),
            required_token=None if token is None else VisibilityToken(token),
            asked_token=None if asked is None else VisibilityToken(asked),
            row_limit=_number(message, "row_limit"),
            timeout=None if timeout_ms is None else timedelta(milliseconds=timeout_ms),
            issued_at=datetime.fromtimestamp(message.issued_at_ms / 1000, UTC),
            outcome=_outcome(message.outcome) if message.HasField("outcome") else None,
            transaction_id=message.transaction_id,
            ticket_id=message.ticket_id,
        )


def _packed(message: Any) -> bytes:
    """The message, deflated when it is large. Raises Invalid (PAYLOAD_TOO_LARGE)."""
    content: bytes = message.SerializeToString()
    if len(content) > _DEFLATED_FROM_BYTES:
        deflated = zlib.compress(content, level=1)
        content = messages.sealed("Statement")(deflated=deflated).SerializeToString()
    if len(content) > SEALED_MAX_BYTES:
        raise Invalid(
            ErrorCode.PAYLOAD_TOO_LARGE,
            f"the statement with its bound rows takes {len(content)} bytes and at most "
            f"{SEALED_MAX_BYTES} can be carried: ingest the values into a table and join it",
            bytes=len(content),
        )
    return content


def _unpacked(content: bytes) -> Any:
    # What is inflated here was signed by us, so it is no larger than a request was.
    message = messages.sealed("Statement")()
    message.ParseFromString(content)
    if message.HasField("deflated"):
        content = zlib.decompress(message.deflated)
        message.Clear()
        message.ParseFromString(content)
    return message


def _outcome(message: Any) -> Outcome:
    token = _number(message, "visibility_token")
    return Outcome(_number(message, "row_count"), None if token is None else VisibilityToken(token))


def _number(message: Any, name: str) -> int | None:
    return getattr(message, name) if message.HasField(name) else None


def milliseconds(span: timedelta) -> int:
    """Whole milliseconds of a span."""
    return span // timedelta(milliseconds=1)


def _refused(purpose: Purpose, reason: str) -> Invalid:
    what = {
        Purpose.TICKET: "the ticket",
        Purpose.PREPARED: "the prepared statement handle",
        Purpose.SESSION: "the session token",
    }[purpose]
    remedy = {
        Purpose.TICKET: "ask for the flight info again",
        Purpose.PREPARED: "prepare the statement again",
        Purpose.SESSION: "connect again",
    }[purpose]
    return Invalid(ErrorCode.TICKET_INVALID, f"{what} {reason}: {remedy}")
