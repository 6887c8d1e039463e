"""The requests in flight: who sent each, where its blocking work runs, and how all of them end.

The event loop moves bytes. Everything that may block (Postgres, the store, DuckDB) runs on a thread
of a pool that is as large as the number of requests admitted, so that a request which was admitted
never waits for another one's thread.
"""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Final, TypeVar

from starlette.datastructures import Headers
from starlette.requests import Request

from duckmesh.errors import Denied, ErrorCode, Overloaded, Unavailable
from duckmesh.telemetry import bind_trace
from gateway.credentials import (
    Authenticator,
    Basic,
    Bearer,
    identify,
    parse_authorization,
    recall,
)
from gateway.identity import Identity

_RETRY_AFTER_SECONDS: Final = 1
_T = TypeVar("_T")


class RequestsInFlight:
    """Thread-safe. `close` ends its threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._count = 0
        self._stops: set[Callable[[], None]] = set()
        self._draining = False
        self._threads = ThreadPoolExecutor(limit, thread_name_prefix="http")

    @property
    def count(self) -> int:
        with self._changed:
            return self._count

    @property
    def draining(self) -> bool:
        with self._changed:
            return self._draining

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A request's place for the length of the block. Raises Overloaded, Unavailable."""
        with self._changed:
            if self._draining:
                raise shutting_down()
            if self._count >= self._limit:
                raise Overloaded(
                    ErrorCode.TOO_MANY_QUERIES,
                    f"{self._limit} requests are in flight on this server: retry in a moment",
                    limit=self._limit,
                    retry_after_seconds=_RETRY_AFTER_SECONDS,
                )
            self._count += 1
        try:
            yield
        finally:
            with self._changed:
                self._count -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def stoppable(self, stop: Callable[[], None]) -> Iterator[None]:
        """Run `stop` when the drain's patience ends inside the block. It must not block."""
        with self._changed:
            self._stops.add(stop)
        try:
            yield
        finally:
            with self._changed:
                self._stops.discard(stop)

    async def run(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """`work` on a thread of the pool, with the caller's logging context.

        Cancelling the caller does not end the work: it is awaited to its end, because it may hold
        what only it can give back.
        """
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()
        running = loop.run_in_executor(self._threads, context.run, work, *arguments)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                await running
            raise

    def drain(self, grace: timedelta) -> bool:
        """Begin nothing new; wait for what is in flight; stop the rest. Whether all have ended.

        Blocks for at most twice `grace`.
        """
        with self._changed:
            self._draining = True
            if self._changed.wait_for(lambda: not self._count, grace.total_seconds()):
                return True
            remaining = list(self._stops)
        for stop in remaining:
            stop()
        with self._changed:
            return self._changed.wait_for(lambda: not self._count, grace.total_seconds())

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Call:
    """One request: its trace, its caller once known, and its way to the threads."""

    def __init__(
        self,
        headers: Headers,
        trace_id: str,
        *,
        calls: RequestsInFlight,
        keys: Authenticator,
        source: str = "",
    ) -> None:
        self.trace_id = trace_id
        self._headers = headers
        self._calls = calls
        self._keys = keys
        self._source = source
        self._identity: Identity | None = None

    def identity(self) -> Identity:
        """Who calls. Blocks: call it on a thread. Raises Denied (UNAUTHORIZED)."""
        if self._identity is None:
            self._identity = _identity_of(self._headers, self._keys, self._source)
        return self._identity

    def recall_identity(self) -> Identity | None:
        """Who calls, by what memory knows; None when only `identity` can tell. Never blocks.

        Raises Denied for what is no credential at all.
        """
        if self._identity is None:
            self._identity = _recalled(self._headers, self._keys)
        return self._identity

    @property
    def known_identity(self) -> Identity | None:
        """Who calls, as far as anybody has asked. Never blocks."""
        return self._identity

    def check_live(self) -> None:
        """Raise Denied when the caller is not let in any more. Blocks; answers from a cache."""
        if self._identity is not None:
            self._keys.check_live(self._identity)

    async def run(self, work: Callable[[Identity], _T]) -> _T:
        """`work` for the caller's identity, on a thread; its log records carry the tenant."""
        return await self._calls.run(self._work, work)

    async def run_for_anybody(self, work: Callable[[], _T]) -> _T:
        """`work` on a thread, without asking who calls."""
        return await self._calls.run(work)

    def _work(self, work: Callable[[Identity], _T]) -> _T:
        identity = self.identity()
        with bind_trace(self.trace_id, tenant=identity.tenant, tenant_id=identity.tenant_id):
            return work(identity)

    def stoppable(self, stop: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
        """As RequestsInFlight.stoppable."""
        return self._calls.stoppable(stop)


def shutting_down() -> Unavailable:
    """The refusal of a request that comes in a drain."""
    return Unavailable(ErrorCode.NOT_READY, "this server is shutting down: connect to another")


def call_of(request: Request) -> Call:
    """The Call of a request; the door's passage put it there."""
    call = request.state.call
    assert isinstance(call, Call)  # noqa: S101 - the application is built with the passage
    return call


def _identity_of(headers: Headers, keys: Authenticator, source: str) -> Identity:
    """The identity of an API key in X-API-Key or Authorization; that of open mode without."""
    credential = _credential_of(headers)
    if credential is None and (tenant := headers.get("x-tenant-id")):
        # Where callers need no credentials they may choose; elsewhere the header says nothing.
        chosen = keys.open_identity(tenant)
        if chosen is not None:
            return chosen
    return identify(keys, credential, source=source)


def _recalled(headers: Headers, keys: Authenticator) -> Identity | None:
    credential = _credential_of(headers)
    if credential is None and (tenant := headers.get("x-tenant-id")):
        return keys.recall_open_identity(tenant)
    return recall(keys, credential)


def _credential_of(headers: Headers) -> Basic | Bearer | None:
    credential = parse_authorization(headers.getlist("authorization"))
    shown = {value.strip() for value in headers.getlist("x-api-key") if value.strip()}
    if len(shown) + (credential is not None) > 1:
        raise Denied(
            ErrorCode.UNAUTHORIZED,
            "the request shows more than one credential: send X-API-Key or Authorization",
        )
    return Bearer(shown.pop()) if shown else credential
