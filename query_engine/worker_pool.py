"""The workers of a serving process: each one tenant's, at most so many, one more in reserve.

Lock order: the pool's lock, then a worker's. The pool's is never held while a process is started
or buried.
"""

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

from duckmesh.errors import ErrorCode, Overloaded, Unavailable
from query_engine.instance import InstanceSettings
from query_engine.orders import Binding
from query_engine.question import Question
from query_engine.watch import Guard
from query_engine.wire import Lost
from query_engine.worker_process import Channel, WorkerProcess

_SHARE: Final = 8
"""Queries of a tenant that one worker takes before another one is started for it."""

_PATIENCE_SECONDS: Final = 5.0
"""How long a query waits for a worker while all serve other tenants."""

_SCRATCH: Final = memoryview(bytearray(256 * 2**10))
_log = logging.getLogger(__name__)

_Place = tuple[Path, int, int] | tuple[Path, None, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """How many workers there are, and how they end."""

    workers: int
    """At most so many take queries; one more waits ready. As many again may end with a stream."""
    idle: timedelta = timedelta(minutes=5)
    """A worker that has had no query for so long ends."""
    kill_grace: timedelta = timedelta(seconds=2)
    """How long a query may go on after it was told to stop; then its worker is killed."""


@dataclass(slots=True, eq=False)
class Worker:
    """What the pool knows of a bound worker. Its fields are the pool's, under its lock."""

    process: WorkerProcess
    tenant: str
    places: frozenset[_Place]
    """Its directories, as they were: one that was made anew is behind its walls."""
    memory_limit_bytes: int = 0
    users: int = 0
    alone: bool = False
    condemned: bool = False
    """It takes no further query, and ends with the last one."""
    idle_since: float = 0.0
    channels: list[Channel] = field(default_factory=list)


class Lease:
    """A place in a worker, with a channel of its own. Ends once, by `end` or `abandon`."""

    def __init__(self, pool: "WorkerPool", worker: Worker, channel: Channel) -> None:
        self._pool = pool
        self._worker = worker
        self.channel = channel

    def stop(self) -> None:
        """Tell the worker to stop this query."""
        self._worker.process.stop(self.channel)

    def avoid(self) -> None:
        """Send no further query to this worker: it may be past hearing."""
        self._pool.condemn(self._worker)

    def kill(self) -> None:
        """SIGKILL the worker, with every query in it."""
        self.avoid()
        self._worker.process.kill()

    @property
    def pid(self) -> int:
        """The worker's."""
        return self._worker.process.pid

    def exit_code(self) -> int | None:
        """How the worker ended; waits a moment for it."""
        return self._worker.process.exit_code()

    def end(self, *, reuse: bool) -> None:
        """The query has ended. `reuse` when its channel is at the end of an answer."""
        self._pool.give_back(self._worker, self.channel if reuse else None)
        if not reuse:
            self.channel.close()

    def abandon(self, ended: Callable[[], None]) -> None:
        """The query was stopped and nobody reads on: `ended` is called when the worker is done."""
        self._pool.read_off(self, ended)


class WorkerPool:
    """Binds workers to tenants and keeps count. Safe from any thread.

    One thread, the keeper, starts and buries all workers: the kernel ties their lives to it.
    """

    def __init__(
        self, settings: WorkerSettings, instance: InstanceSettings, *, batch_rows: int
    ) -> None:
        self.settings = settings
        self._instance = instance
        self._batch_rows = batch_rows
        self._changed = threading.Condition()
        self._workers: list[Worker] = []  # least recently used first
        self._spares: list[WorkerProcess] = []
        self._asked: set[object] = set()  # who found no spare
        self._waiting = 0
        self.started = 0
        """Processes started so far."""
        self._abandoned: list[tuple[Lease, Callable[[], None]]] = []
        self._ended: list[WorkerProcess] = []
        self._reading_off: set[Lease] = set()  # the keeper's alone
        self._closing = False
        self._walls_said = False
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_in.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_out, selectors.EVENT_READ, self._woken)
        self._keeper = threading.Thread(target=self._keep, name="keep-workers", daemon=True)
        self._keeper.start()

    def close(self) -> None:
        """End every idle worker now, and the rest with their queries."""
        with self._changed:
            self._closing = True
            for worker in self._workers:
                worker.condemned = True
            idle = not any(worker.users for worker in self._workers)
            self._changed.notify_all()
        self._wake()
        if idle:
            self._keeper.join()

    def await_spare(self, timeout: timedelta) -> bool:
        """Block until a worker waits ready, so that a first query need not; whether one does."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._closing or any(each.started for each in self._spares),
                timeout.total_seconds(),
            )

    @property
    def pids(self) -> list[int]:
        """The processes of the workers that are bound."""
        with self._changed:
            return [worker.process.pid for worker in self._workers]

    @property
    def users(self) -> int:
        """Queries that hold a worker."""
        with self._changed:
            return sum(worker.users for worker in self._workers)

    # --- leases

    def lease(self, question: Question, guard: Guard, *, alone: bool) -> Lease:
        """A place in a worker of the tenant; `alone` in one that no other query is in.

        Waits while every worker serves other tenants. Raises Overloaded (TOO_MANY_QUERIES) when
        none comes free, what stopped the query meanwhile, and Lost when the worker has died.
        """
        places = frozenset(map(_place, question.directories))
        guard.hold(_Waker(self._changed))
        deadline = time.monotonic() + _PATIENCE_SECONDS
        with self._changed:
            while (worker := self._choose(question, places, alone=alone)) is None:
                guard.check()
                left = deadline - time.monotonic()
                if self._closing or left <= 0:
                    raise _no_worker(self.settings.workers)
                self._wait(left)
            worker.users += 1
            worker.alone = worker.alone or alone
            self._workers.remove(worker)
            self._workers.append(worker)
            known = worker.channels.pop() if worker.channels else None
        try:
            return Lease(self, worker, known or worker.process.open_channel())
        except Lost:
            self.condemn(worker)
            self.give_back(worker, None)
            raise

    def _wait(self, seconds: float) -> None:
        """Until something changes. Under the lock, which others have meanwhile."""
        self._waiting += 1
        try:
            self._changed.wait(seconds)
        finally:
            self._waiting -= 1
            if self._waiting == 0 and len(self._spares) > 1:
                # What was started for those who waited may be for nobody.
                self._wake()

    def _choose(
        self, question: Question, places: frozenset[_Place], *, alone: bool
    ) -> Worker | None:
        """A worker to use, bound now if need be. Under the lock; None is to wait."""
        of_tenant = [each for each in reversed(self._workers) if each.tenant == question.tenant]
        for worker in of_tenant:
            if not places <= worker.places:
                # Behind its walls a directory is missing that was made since.
                self._retire(worker)
        memory = self._memory_of(question)
        own = [
            worker
            for worker in of_tenant
            if not worker.condemned and not worker.alone and worker.memory_limit_bytes == memory
        ]
        fit = [worker for worker in own if worker.users < (1 if alone else _SHARE)]
        if fit:
            return fit[0]
        # One that ends with its last stream holds no new query up, for as long as it may be read.
        lasting = sum(not worker.condemned for worker in self._workers)
        if lasting < self.settings.workers and len(self._workers) < 2 * self.settings.workers:
            return self._bind(question, places, alone=alone)
        idle = next((worker for worker in self._workers if worker.users == 0), None)
        if idle is not None:
            self._retire(idle)
            return self._bind(question, places, alone=alone)
        # None comes free soon: better crowded than refused, and evenly.
        return min(own, key=lambda worker: worker.users, default=None)

    def _memory_of(self, question: Question) -> int:
        return question.limits.memory_bytes or self._instance.memory_limit_bytes

    def _bind(self, question: Question, places: frozenset[_Place], *, alone: bool) -> Worker | None:
        if self._closing:
            return None
        while self._spares:
            process = next((each for each in self._spares if each.started), self._spares[0])
            self._spares.remove(process)
            instance = self._instance
            binding = Binding(
                directories=question.directories,
                home=process.home,
                spills=instance.temp_directory is not None,
                threads=instance.threads,
                memory_limit_bytes=self._memory_of(question),
                temp_limit_bytes=instance.temp_limit_bytes,
                batch_rows=self._batch_rows,
            )
            try:
                process.bind(binding)
            except Lost:
                self._ended.append(process)
                continue
            worker = Worker(process, question.tenant, places, self._memory_of(question))
            self._workers.append(worker)
            self._wake()
            return worker
        # Once for all queries of a tenant that will share a worker, however often they look.
        self._asked.add(id(question) if alone else question.tenant)
        self._wake()
        return None

    def give_back(self, worker: Worker, channel: Channel | None) -> None:
        with self._changed:
            worker.users -= 1
            if channel is not None and not worker.condemned:
                worker.channels.append(channel)
            elif channel is not None:
                # It takes no further query, and may be struck out already.
                channel.close()
            if worker.users == 0:
                worker.alone = False
                worker.idle_since = time.monotonic()
                if worker.condemned:
                    self._bury_later(worker)
            self._changed.notify_all()

    def _retire(self, worker: Worker) -> None:
        """Let it take no further query, and end with its last one. Under the lock."""
        worker.condemned = True
        if worker.users == 0:
            self._bury_later(worker)

    def condemn(self, worker: Worker) -> None:
        with self._changed:
            worker.condemned = True

    def read_off(self, lease: Lease, ended: Callable[[], None]) -> None:
        with self._changed:
            self._abandoned.append((lease, ended))
        self._wake()

    def _bury_later(self, worker: Worker) -> None:
        """Take it out of the books; the keeper does the rest. Under the lock."""
        if worker in self._workers:
            self._workers.remove(worker)
            self._ended.append(worker.process)
            for channel in worker.channels:
                channel.close()
            worker.channels.clear()
            self._wake()

    # --- the keeper

    def _wake(self) -> None:
        # Full means that it is awake, or will be.
        with contextlib.suppress(OSError):
            self._wake_in.send(b"\0")

    def _woken(self) -> None:
        self._wake_out.recv(4096)

    def _keep(self) -> None:
        while not self._over():
            self._tend()
            for key, _ in self._selector.select(self._pause()):
                key.data()
        with self._changed:
            remaining = [*self._spares, *self._ended]
        for process in remaining:
            self._bury(process)
        self._selector.close()
        self._wake_out.close()
        self._wake_in.close()

    def _over(self) -> bool:
        with self._changed:
            done = not self._workers and not self._abandoned and not self._reading_off
            return self._closing and done

    def _pause(self) -> float | None:
        """Until a worker may have been idle for too long. Queries that end wake nobody for it."""
        now = time.monotonic()
        with self._changed:
            if not self._workers:
                return None
            since = min(each.idle_since if each.users == 0 else now for each in self._workers)
        return max(0.01, since + self.settings.idle.total_seconds() - now)

    def _tend(self) -> None:
        with self._changed:
            self._retire_idle()
            abandoned, self._abandoned = self._abandoned, []
            wanted = 0 if self._closing else max(1, len(self._asked)) - len(self._spares)
            self._asked.clear()
            if wanted < 0 and self._waiting == 0:
                self._dismiss(-wanted)
            ended, self._ended = self._ended, []
            closing = self._closing
        for process in ended:
            self._bury(process)
        for lease, done in abandoned:
            self._reading_off.add(lease)
            self._register(lease.channel.socket, partial(self._read_on, lease, done))
        if closing:
            # Nobody strikes them any more, and nobody waits for them.
            for lease in self._reading_off:
                lease.kill()
        for _ in range(wanted):
            self._start()

    def _dismiss(self, surplus: int) -> None:
        """End so many spares, those that have not started yet first. Under the lock."""
        self._spares.sort(key=lambda process: process.started)
        self._ended += self._spares[:surplus]
        del self._spares[:surplus]

    def _retire_idle(self) -> None:
        before = time.monotonic() - self.settings.idle.total_seconds()
        for worker in list(self._workers):
            if worker.users == 0 and (worker.condemned or worker.idle_since <= before):
                worker.condemned = True
                self._bury_later(worker)

    def _start(self) -> None:
        try:
            process = WorkerProcess(self._instance.temp_directory)
        except OSError:
            _log.exception("a worker could not be started")
            return
        self.started += 1
        self._register(process.control, partial(self._heard, process))
        with self._changed:
            self._spares.append(process)
            self._changed.notify_all()

    def _bury(self, process: WorkerProcess) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(process.control)
        process.bury()

    def _register(self, connected: socket.socket, ready: Callable[[], None]) -> None:
        self._selector.register(connected, selectors.EVENT_READ, ready)

    def _heard(self, process: WorkerProcess) -> None:
        """A worker said something, or has ended: then its queries find out by themselves."""
        try:
            walls = process.hear()
        except Lost:
            self._strike_out(process)
            self._bury(process)
            return
        if walls is None:
            return
        if not process.started:
            with self._changed:
                process.started = True
                self._changed.notify_all()
        if walls and not self._walls_said:
            self._walls_said = True
            for wall, holds in walls.items():
                if not holds:
                    _log.warning("workers stand without a wall: %s cannot be had here", wall)

    def _strike_out(self, process: WorkerProcess) -> None:
        with self._changed:
            self._spares = [each for each in self._spares if each is not process]
            for worker in [each for each in self._workers if each.process is process]:
                worker.condemned = True
                self._workers.remove(worker)
                for channel in worker.channels:
                    channel.close()
                worker.channels.clear()
            self._changed.notify_all()

    def _read_on(self, lease: Lease, done: Callable[[], None]) -> None:
        """Discard what an abandoned query still sends; its end is the channel's."""
        try:
            if lease.channel.socket.recv_into(_SCRATCH, 0, socket.MSG_DONTWAIT):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._selector.unregister(lease.channel.socket)
        self._reading_off.discard(lease)
        done()


class _Waker:
    """Held by a query that waits for a worker: an interrupt ends the wait."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed

    def interrupt(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _place(directory: Path) -> _Place:
    try:
        found = os.stat(directory)  # noqa: PTH116 - a hot path
    except OSError:
        return (directory, None, None)
    return (directory, found.st_dev, found.st_ino)


def _no_worker(workers: int) -> Overloaded:
    return Overloaded(
        ErrorCode.TOO_MANY_QUERIES,
        "all query workers are busy with other tenants: retry in a second",
        max_workers=workers,
        retry_after_seconds=1,
    )


def lost(attempts: int) -> Unavailable:
    """The error of a query whose workers died under it."""
    return Unavailable(
        ErrorCode.QUERY_WORKER_LOST,
        "the query's worker process ended before the query did; run the query again",
        attempts=attempts,
    )
