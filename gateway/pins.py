"""Pins and tags of a tenant's snapshots, for those who operate it."""

from datetime import timedelta

from catalog import pins
from catalog.connection import Catalog
from catalog.pins import Pin
from duckmesh.errors import ErrorCode, Invalid
from duckmesh.identifiers import SnapshotId, check_tag
from gateway.acts import administrative_act
from gateway.identity import Identity, Role

_PINS_SHOWN = 10_000


class SnapshotPins:
    """What holds the snapshots of the caller's tenant past retention. Thread-safe."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def pin(
        self,
        identity: Identity,
        snapshot_id: SnapshotId,
        *,
        tag: str | None = None,
        lasting: timedelta | None = None,
    ) -> Pin:
        """Hold a snapshot until it is unpinned, or for `lasting`; a tag that is set again moves.

        Atomic, and repeatable: the last call decides. Raises NotFound (SNAPSHOT_NOT_FOUND),
        Invalid for what is no tag, Denied.
        """
        with administrative_act(self._catalog, identity, "pin_snapshot", str(snapshot_id)) as act:
            identity.require(Role.OPS_ADMIN)
            if tag is not None:
                check_tag(tag)
            with self._catalog.connect() as connection, connection.transaction():
                made = pins.pin(
                    connection,
                    identity.tenant_id,
                    snapshot_id,
                    tag=tag,
                    lasting=lasting,
                    created_by=identity.principal,
                )
                act.done(connection, tag=tag)
            return made

    def unpin(
        self, identity: Identity, *, snapshot_id: SnapshotId | None = None, tag: str | None = None
    ) -> SnapshotId:
        """Take a tag away, or the pin of a snapshot that has no tag; return the snapshot.

        Retention may expire it from then on. Raises NotFound, Invalid unless one is named, Denied.
        """
        target = tag if tag is not None else str(snapshot_id)
        with administrative_act(self._catalog, identity, "unpin_snapshot", target) as act:
            identity.require(Role.OPS_ADMIN)
            if (snapshot_id is None) == (tag is None):
                raise Invalid(
                    ErrorCode.INVALID_COMMAND,
                    "name what to unpin: a tag, or a snapshot's number",
                )
            if tag is not None:
                check_tag(tag)
            with self._catalog.connect() as connection, connection.transaction():
                held = pins.unpin(connection, identity.tenant_id, snapshot_id=snapshot_id, tag=tag)
                act.done(connection, snapshot_id=held)
            return held

    def all(self, identity: Identity) -> list[Pin]:
        """The pins that hold, newest snapshot first. Raises Denied."""
        identity.require(Role.QUERY_READER)
        with self._catalog.connect() as connection:
            return pins.pins_of(connection, identity.tenant_id, limit=_PINS_SHOWN)
