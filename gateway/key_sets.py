"""A provider's public keys (RFC 7517): from a file or a URL, kept, and fetched anew when they turn.

A fetch runs on a thread of its own and one at a time, so that no provider, however slow, holds a
caller for longer than the patience given. Keys that are known go on being used while it runs, and
for an hour when the provider is away.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.error import URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from duckmesh.errors import ErrorCode, Unavailable
from duckmesh.telemetry import get_logger

_SET_MAX_BYTES: Final = 256 * 2**10
_KEYS_MAX: Final = 100
_FRESH_SECONDS: Final = 300.0
_STALE_SECONDS: Final = 3600.0
"""So long a set is used that cannot be fetched anew."""
_PAUSE_SECONDS: Final = 5.0
"""Between two fetches: a stream of tokens with unknown keys is no stream of requests."""
_KINDS: Final = frozenset({"RSA", "EC", "OKP"})
"""Public keys alone: a symmetric key in a set would make its readers its signers."""

_log = get_logger(__name__)

WebKey = Mapping[str, Any]
"""One public key of a set, as the provider wrote it."""


class KeySource(Protocol):
    """Where a set comes from."""

    def read(self, timeout: timedelta) -> bytes:
        """The set's JSON. Raises OSError or ValueError when it cannot be had."""


class KeyFile:
    """A set in a local file, for networks without a way out."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, timeout: timedelta) -> bytes:  # noqa: ARG002 - a local file does not wait
        with self._path.open("rb") as file:
            return file.read(_SET_MAX_BYTES + 1)


class KeyUrl:
    """A set behind `https://` (or `http://` on this machine). No redirect is followed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._opener = build_opener(_NoRedirect)

    def read(self, timeout: timedelta) -> bytes:
        asked = Request(self._url, headers={"accept": "application/json"})  # noqa: S310 - settings
        with self._opener.open(asked, timeout=timeout.total_seconds()) as answer:
            content: bytes = answer.read(_SET_MAX_BYTES + 1)
        return content


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """None makes the redirect an error: the setting names where the keys are."""


class KeySet:
    """The keys of one provider. Thread-safe."""

    def __init__(
        self,
        source: KeySource,
        *,
        timeout: timedelta = timedelta(seconds=3),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._timeout = timeout
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._keys: Sequence[WebKey] = ()
        self._read_at = float("-inf")
        self._asked_at = float("-inf")
        self._fetching = False

    def find(self, key_id: str | None) -> WebKey | None:
        """The key of that id; without an id, the only key of the set. None when there is none.

        An unknown id has the set fetched anew, at most every few seconds. Blocks for the timeout
        at most, and only when it knows no key that would do. Raises Unavailable (NOT_READY) when
        no set could be had within the last hour.
        """
        with self._changed:
            found = self._known(key_id)
            age = self._monotonic() - self._read_at
            if found is None or age > _FRESH_SECONDS:
                self._begin_fetch()
            if found is not None and age <= _STALE_SECONDS:
                return found
            self._changed.wait_for(lambda: not self._fetching, self._timeout.total_seconds())
            if self._monotonic() - self._read_at > _STALE_SECONDS:
                raise _provider_away()
            return self._known(key_id)

    def _known(self, key_id: str | None) -> WebKey | None:
        if key_id is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.get("kid") == key_id), None)

    def _begin_fetch(self) -> None:
        """Fetch on another thread, unless one does or did a moment ago. Holds the lock."""
        now = self._monotonic()
        if self._fetching or now - self._asked_at < _PAUSE_SECONDS:
            return
        self._fetching, self._asked_at = True, now
        threading.Thread(target=self._fetch, name="key-set", daemon=True).start()

    def _fetch(self) -> None:
        keys: Sequence[WebKey] | None = None
        try:
            keys = read_keys(self._source.read(self._timeout))
        except (OSError, URLError, ValueError, RecursionError) as failed:
            _log.warning("key_set_unread", reason=type(failed).__name__)
        finally:
            with self._changed:
                if keys is not None:
                    self._keys, self._read_at = keys, self._monotonic()
                self._fetching = False
                self._changed.notify_all()


def read_keys(content: bytes) -> Sequence[WebKey]:
    """The signing keys of a set: public ones, each to be named by its id. Raises ValueError."""
    if len(content) > _SET_MAX_BYTES:
        raise ValueError("the set is too large")
    parsed = json.loads(content)
    match parsed:
        case {"keys": list(keys)}:
            return tuple(key for key in keys[:_KEYS_MAX] if _signs(key))
    raise ValueError("a key set is an object with the array `keys`")


def _signs(key: object) -> bool:
    return isinstance(key, dict) and key.get("kty") in _KINDS and key.get("use", "sig") == "sig"


def _provider_away() -> Unavailable:
    return Unavailable(
        ErrorCode.NOT_READY,
        "the keys of the token's issuer cannot be read just now: retry with backoff",
    )
