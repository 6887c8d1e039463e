"""Dead letters, for those who operate a tenant: what was given up, and its new acceptance."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from catalog import tables
from catalog.connection import Catalog
from duckmesh.errors import ErrorCode, Invalid, NotFound
from duckmesh.tokens import BEFORE_ALL, VisibilityToken
from gateway.acts import administrative_act
from gateway.identity import Identity, Role
from ingest_bus.dead_letters import not_dead
from ingest_bus.envelope import DeadLetter, Replay
from ingest_bus.port import IngestBus

REPLAYED_AT_ONCE: Final = 1_000
_GROUP_MAX: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class NamedDeadLetter:
    """A dead letter, and the table that it was written to."""

    dead: DeadLetter
    table: str | None
    """None when the table was dropped."""


class DeadLetters:
    """What was given up of the caller's tenant. Thread-safe."""

    def __init__(self, catalog: Catalog, bus: IngestBus) -> None:
        self._catalog = catalog
        self._bus = bus

    def all(
        self,
        identity: Identity,
        *,
        above: VisibilityToken = BEFORE_ALL,
        limit: int,
        replayed: bool = False,
    ) -> list[NamedDeadLetter]:
        """Those with tokens above one, in token order; replayed ones on request. Raises Denied."""
        identity.require(Role.OPS_ADMIN)
        return self._named(
            identity,
            self._bus.dead_letters(identity.tenant_id, above=above, limit=limit, replayed=replayed),
        )

    def one(self, identity: Identity, token: VisibilityToken) -> NamedDeadLetter:
        """That of this token, replayed or not. Raises NotFound, Denied."""
        identity.require(Role.OPS_ADMIN)
        found = self._bus.dead_letters(
            identity.tenant_id,
            above=VisibilityToken(max(0, token - 1)),
            limit=1,
            replayed=True,
            named=[token],
        )
        if not found or found[0].visibility_token != token:
            raise not_dead(token)
        return self._named(identity, found)[0]

    def to_replay(
        self, identity: Identity, tokens: Collection[VisibilityToken]
    ) -> list[NamedDeadLetter]:
        """What `replay` of these accepts anew: with an event of a group comes the group.

        Changes nothing. Raises NotFound for a token of no dead letter, and for one whose table was
        dropped (TABLE_NOT_FOUND), Invalid for too many at once, Denied.
        """
        identity.require(Role.OPS_ADMIN)
        _check_count(tokens)
        found = self._bus.dead_letters(
            identity.tenant_id, limit=_GROUP_MAX, replayed=True, named=tokens
        )
        unknown = sorted(set(tokens) - {dead.visibility_token for dead in found})
        if unknown:
            raise not_dead(unknown[0])
        waiting = self._named(identity, [dead for dead in found if dead.replay_token is None])
        for each in waiting:
            if each.table is None:
                raise _table_is_gone(each.dead)
        return waiting

    def replay(self, identity: Identity, tokens: Collection[VisibilityToken]) -> list[Replay]:
        """Accept dead letters again, all or none: each has a new token, which can be waited for.

        Repeatable: what was replayed before answers with its first replay. Raises what `to_replay`
        raises, and Conflict (SCHEMA_INCOMPATIBLE) when the table has other columns by now.
        """
        with administrative_act(self._catalog, identity, "replay", _span(tokens)) as act:
            self.to_replay(identity, tokens)
            with self._catalog.connect() as connection, connection.transaction():
                joined = connection if self._bus.joins(connection) else None
                done = self._bus.replay(identity.tenant_id, tokens, within=joined)
                act.done(
                    connection,
                    dead_tokens=[each.dead_token for each in done],
                    visibility_tokens=[each.receipt.visibility_token for each in done],
                )
        return done

    def _named(self, identity: Identity, found: Sequence[DeadLetter]) -> list[NamedDeadLetter]:
        table_ids = {dead.table_id for dead in found}
        with self._catalog.connect() as connection:
            places = tables.places(connection, identity.tenant_id, table_ids)
        live = {table_id: place.name for table_id, place in places.items() if not place.dropped}
        return [NamedDeadLetter(dead, live.get(dead.table_id)) for dead in found]


def _span(tokens: Collection[VisibilityToken]) -> str:
    """The dead letters for people: the first of them, and the last."""
    if not tokens:
        return ""
    first, last = min(tokens), max(tokens)
    return str(first) if first == last else f"{first}..{last}"


def _check_count(tokens: Collection[VisibilityToken]) -> None:
    if not tokens or len(tokens) > REPLAYED_AT_ONCE:
        raise Invalid(
            ErrorCode.INVALID_COMMAND,
            f"a replay names 1 to {REPLAYED_AT_ONCE} dead letters by their tokens",
        )


def _table_is_gone(dead: DeadLetter) -> NotFound:
    return NotFound(
        ErrorCode.TABLE_NOT_FOUND,
        f"the table of dead letter {dead.visibility_token} was dropped: restore it from a "
        "snapshot, and write the rows again",
        visibility_token=dead.visibility_token,
    )
