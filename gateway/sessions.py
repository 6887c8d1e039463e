"""What happened in a client's session, for whichever serving process answers it next."""

from collections.abc import Mapping
from typing import Any, Final

from catalog import sessions
from catalog.connection import Catalog
from catalog.sessions import Found, SessionRecord
from duckmesh.identifiers import SessionId
from gateway.identity import Identity, Role

SESSIONS_SHOWN: Final = 10_000


class ClientSessions:
    """The shared records of sessions. Thread-safe; each call is one statement in the catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def find(self, identity: Identity, session_id: SessionId) -> Found:
        """One of the tenant's sessions, and the tenant's newest snapshot at the same moment.

        The record's last token covers every write that the session was answered for, by any
        process.
        """
        with self._catalog.connect() as connection:
            return sessions.find(connection, identity.tenant_id, session_id)

    def change_options(
        self, identity: Identity, session_id: SessionId, options: Mapping[str, Any]
    ) -> None:
        """Set options of a session; None erases one. They hold from the next statement on."""
        with self._catalog.connect() as connection:
            sessions.change_options(
                connection,
                session_id,
                tenant_id=identity.tenant_id,
                principal=identity.principal,
                options=options,
            )

    def keep_alive(self, session_id: SessionId) -> None:
        """Note that the session's client is there. Nothing happens when it has no record."""
        with self._catalog.connect() as connection:
            sessions.touch(connection, session_id)

    def close(self, identity: Identity, session_id: SessionId) -> None:
        """Forget the session's options. Repeatable."""
        with self._catalog.connect() as connection:
            sessions.close(connection, identity.tenant_id, session_id)

    def visible_to(self, identity: Identity) -> list[SessionRecord]:
        """The caller's own sessions; all of the tenant's for an ops_admin. The last seen first."""
        with self._catalog.connect() as connection:
            found = sessions.list_sessions(connection, identity.tenant_id, limit=SESSIONS_SHOWN)
        if Role.OPS_ADMIN in identity.roles:
            return found
        return [record for record in found if record.principal == identity.principal]


__all__ = ["ClientSessions", "SessionRecord"]
