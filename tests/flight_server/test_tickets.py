"""A sealed value opens only as it was sealed."""

from datetime import UTC, datetime, timedelta

import pytest

from duckmesh.errors import ErrorCode, Invalid
from duckmesh.identifiers import SnapshotId, TenantId
from duckmesh.tokens import VisibilityToken
from flight_server.tickets import Purpose, Seal, SealedStatement

SECRET = b"s" * 32
HOUR = timedelta(hours=1)
STATEMENT = SealedStatement(
    tenant_id=TenantId(7),
    tenant="acme",
    sql="SELECT 'ä'",
    parameters=b"ARROW1",
    snapshot_id=SnapshotId(3),
    required_token=VisibilityToken(9),
    row_limit=0,
    timeout=timedelta(seconds=2),
    issued_at=datetime(2026, 1, 2, tzinfo=UTC),
)


def test_another_process_with_the_secret_opens_the_ticket():
    sealed = STATEMENT.sealed_by(Seal(SECRET), Purpose.TICKET, lifetime=HOUR)
    opened = SealedStatement.opened_by(Seal(SECRET), Purpose.TICKET, sealed, tenant_id=TenantId(7))
    assert opened == STATEMENT


def test_what_is_unset_stays_unset():
    bare = SealedStatement(
        tenant_id=TenantId(1), tenant="t", sql="x", issued_at=datetime(2026, 1, 2, tzinfo=UTC)
    )
    seal = Seal(SECRET)
    sealed = bare.sealed_by(seal, Purpose.PREPARED, lifetime=HOUR)
    assert SealedStatement.opened_by(seal, Purpose.PREPARED, sealed, tenant_id=TenantId(1)) == bare


def test_every_flipped_bit_and_every_truncation_is_refused():
    seal = Seal(SECRET)
    sealed = seal.seal(Purpose.TICKET, b"payload", lifetime=HOUR)
    damaged = [
        sealed[:at] + bytes([sealed[at] ^ (1 << bit)]) + sealed[at + 1 :]
        for at in range(len(sealed))
        for bit in range(8)
    ]
    damaged += [sealed[:length] for length in range(len(sealed))]
    damaged += [sealed + b"\x00", b""]
    for each in damaged:
        with pytest.raises(Invalid) as caught:
            seal.open(Purpose.TICKET, each)
        assert caught.value.code is ErrorCode.TICKET_INVALID


@pytest.mark.parametrize("purpose", [Purpose.PREPARED, Purpose.SESSION])
def test_a_ticket_does_not_pass_for_anything_else(purpose):
    seal = Seal(SECRET)
    with pytest.raises(Invalid, match="not issued by this service"):
        seal.open(purpose, seal.seal(Purpose.TICKET, b"x", lifetime=HOUR))


def test_another_secret_does_not_open_it():
    sealed = Seal(SECRET).seal(Purpose.TICKET, b"x", lifetime=HOUR)
    with pytest.raises(Invalid, match="not issued by this service"):
        Seal(b"t" * 32).open(Purpose.TICKET, sealed)


def test_another_tenant_learns_nothing_from_a_ticket():
    seal = Seal(SECRET)
    sealed = STATEMENT.sealed_by(seal, Purpose.TICKET, lifetime=HOUR)
    with pytest.raises(Invalid) as theirs:
        SealedStatement.opened_by(seal, Purpose.TICKET, sealed, tenant_id=TenantId(8))
    with pytest.raises(Invalid) as forged:
        SealedStatement.opened_by(seal, Purpose.TICKET, b"?" * 99, tenant_id=TenantId(8))
    assert str(theirs.value) == str(forged.value)


def test_an_expired_ticket_says_so():
    moment = [1000.0]
    seal = Seal(SECRET, now=lambda: moment[0])
    sealed = seal.seal(Purpose.TICKET, b"x", lifetime=timedelta(seconds=10))
    moment[0] = 1009.9
    assert seal.open(Purpose.TICKET, sealed) == b"x"
    moment[0] = 1010.0
    with pytest.raises(Invalid, match="has expired: ask for the flight info again"):
        seal.open(Purpose.TICKET, sealed)


def test_a_guessable_secret_is_refused():
    with pytest.raises(ValueError, match="at least 32 bytes"):
        Seal(b"short")
