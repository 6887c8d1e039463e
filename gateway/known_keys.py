"""The API keys that this process looked up lately, and when each was last used.

A revoked key is forgotten at the notification that its revocation sends. Should that be lost, what
is known is asked for again within a second.
"""

import hmac
import threading
import time
from collections.abc import Callable
from typing import Final

from catalog import tenants
from catalog.connection import Catalog
from catalog.notifications import CREDENTIALS_CHANNEL
from catalog.tenants import KeyHolder
from duckmesh.errors import DuckMeshError
from duckmesh.identifiers import KeyId
from duckmesh.telemetry import get_logger
from gateway.guesses import Guesses

_KEPT_SECONDS: Final = 0.75
_LIMIT: Final = 10_000
_USE_NOTED_SECONDS: Final = 300.0
"""So often the catalog is told that a key is in use: `last_used_at` may be behind by as much."""

_log = get_logger(__name__)


class KnownKeys:
    """Live keys by id. Thread-safe; memory is bounded."""

    def __init__(
        self, catalog: Catalog, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._catalog = catalog
        self._monotonic = monotonic
        self._guesses = Guesses(monotonic=monotonic)
        self._lock = threading.Lock()
        self._known: dict[KeyId, tuple[float, KeyHolder | None]] = {}
        self._noted: dict[KeyId, float] = {}
        self._subscribed = False

    def holder_of(self, secret: str, *, source: str) -> KeyHolder | None:
        """Whom a live secret speaks for; None when it is wrong.

        Raises Overloaded (RATE_LIMITED) when too many wrong ones of this key id came from the
        source. The comparison takes the same time wherever the secrets differ.
        """
        key_id = tenants.key_id_of(secret)
        if key_id is None:
            return None
        holder = self.live(key_id)
        shown = tenants.hash_secret(secret)
        if holder is None or not hmac.compare_digest(holder.secret_hash, shown):
            self._guesses.wrong(source, key_id)
            return None
        self._note_use(key_id)
        return holder

    def recall(self, secret: str) -> KeyHolder | None:
        """The same by what memory knows: None for what the catalog must be asked. Never blocks."""
        key_id = tenants.key_id_of(secret)
        if key_id is None:
            return None
        with self._lock:
            until, holder = self._known.get(key_id, (0.0, None))
        if holder is None or self._monotonic() >= until:
            return None
        if not hmac.compare_digest(holder.secret_hash, tenants.hash_secret(secret)):
            return None
        self._note_use(key_id)
        return holder

    def live(self, key_id: KeyId) -> KeyHolder | None:
        """Who holds the key, while it and its tenant are allowed in."""
        with self._lock:
            until, holder = self._known.get(key_id, (0.0, None))
        if self._monotonic() < until:
            return holder
        self._listen()
        asked_at = self._monotonic()
        with self._catalog.connect() as connection:
            holder = tenants.find_holder(connection, key_id)
        with self._lock:
            if len(self._known) >= _LIMIT:
                self._known.clear()
            # From the question on, not from the answer: the key may have been revoked in between.
            self._known[key_id] = (asked_at + _KEPT_SECONDS, holder)
        return holder

    def _listen(self) -> None:
        if not self._subscribed:
            self._subscribed = True
            self._catalog.subscribe(CREDENTIALS_CHANNEL, self._forget_all)

    def _forget_all(self, _payload: str) -> None:
        with self._lock:
            self._known.clear()

    def _note_use(self, key_id: KeyId) -> None:
        """Tell the catalog, beside the call, when it was not told lately."""
        now = self._monotonic()
        with self._lock:
            if now - self._noted.get(key_id, float("-inf")) < _USE_NOTED_SECONDS:
                return
            if len(self._noted) >= _LIMIT:
                self._noted.clear()
            self._noted[key_id] = now
        threading.Thread(
            target=self._write_use, args=(key_id,), name="key-use", daemon=True
        ).start()

    def _write_use(self, key_id: KeyId) -> None:
        try:
            with self._catalog.connect() as connection:
                tenants.note_use(connection, key_id)
        except DuckMeshError as error:
            # A display's figure: the next use, minutes later, tries again.
            _log.warning("key_use_not_noted", error_code=error.code.value)
