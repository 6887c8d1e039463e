"""The serving process's handle on one worker: start it, bind it, open channels, stop, kill."""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import query_engine
from query_engine import wire
from query_engine.orders import MESSAGE_MAX_BYTES, ORDER, Binding, Order
from query_engine.wire import Lost, Source

_numbers: Final = itertools.count(1)

_END_SECONDS: Final = 1.0
_ENVIRONMENT: Final = {
    "LANG": "C.UTF-8",
    # Memory pools that reserve large spaces would take them from the limit of the address space.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "2",
    # The buffers of a batch are allocated and freed for each: memory that went back to the kernel
    # between two of them would be zeroed, page by page, every time.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
    "MALLOC_TOP_PAD_": str(2**20),
    # Threads of libraries would be there before the walls, which bind only the threads behind.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True, eq=False)
class Channel:
    """Our end of a channel."""

    number: int
    socket: socket.socket
    source: Source

    def close(self) -> None:
        self.socket.close()


class WorkerProcess:
    """Starts with its construction; unbound, it waits. Safe from any thread.

    The kernel kills it when the *thread* that constructed it ends, so that no worker outlives the
    serving process, however that ends.
    """

    def __init__(self, home_root: Path | None) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="worker-", dir=home_root))
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.setblocking(False)
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - this Python, this package
                [
                    *(sys.executable, "-P", "-m", "query_engine.worker"),
                    *(str(theirs.fileno()), str(os.getpid())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_ENVIRONMENT | self._places(),
                pass_fds=[theirs.fileno()],
                # Its own session: Ctrl-C reaches the serving process, which drains first.
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.started = False
        """Whether it waits for orders by now. Set by who hears it."""

    def _places(self) -> dict[str, str]:
        root = Path(query_engine.__file__).parents[1]
        return {"PYTHONPATH": str(root), "TMPDIR": str(self.home)}

    def exit_code(self) -> int | None:
        """How it ended, negative for a signal; None when it has not within a second."""
        try:
            return self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def bind(self, binding: Binding) -> None:
        """Give it to a tenant. Raises Lost."""
        self._say(wire.pickled(binding))

    def open_channel(self) -> Channel:
        """A channel for one query at a time; does not wait for the worker. Raises Lost."""
        number = next(_numbers)
        ours, theirs = wire.channel()
        with theirs:
            try:
                self._say(ORDER.pack(Order.OPEN, number), theirs)
            except Lost:
                ours.close()
                raise
        return Channel(number, ours, Source(ours))

    def stop(self, channel: Channel) -> None:
        """Stop the channel's query; the channel ends with it. Never blocks."""
        with suppress(Lost):
            self._say(ORDER.pack(Order.STOP, channel.number))

    def hear(self) -> dict[str, bool] | None:
        """What it says, or None for nothing. Raises Lost at its end.

        First an empty message: it has started. Once it is bound, which of its walls hold.
        """
        try:
            content = self.control.recv(MESSAGE_MAX_BYTES)
            if not content:
                raise Lost
            return {str(name): holds is True for name, holds in json.loads(content).items()}
        except BlockingIOError:
            return None
        except (OSError, ValueError, AttributeError) as error:
            raise Lost from error

    def kill(self) -> None:
        """SIGKILL. Does not wait; its sockets end."""
        with suppress(OSError):
            self._process.kill()

    def bury(self) -> None:
        """Kill it, wait until it is gone, and remove what it left. Repeatable."""
        self.kill()
        self._process.wait()
        self.control.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def _say(self, content: bytes, descriptor: socket.socket | None = None) -> None:
        handed = [] if descriptor is None else [descriptor.fileno()]
        try:
            with self._lock:
                socket.send_fds(self.control, [content], handed)
        except OSError as error:
            # Also when the socket is full: a worker that hears nothing is as good as dead.
            raise Lost from error
