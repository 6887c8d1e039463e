"""A load of many writers and a reader that checks them; the same for every way of writing."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Row = tuple[int, int]
"""Which writer wrote it, and its number there."""

Write = Callable[[Row], int]
"""Write one row; return its token once it is acknowledged. Raises when it is not."""

Read = Callable[[int], Sequence[Row]]
"""Every row of a query that asks for a token."""

LOAD_SECONDS = float(os.environ.get("DUCKMESH_TEST_LOAD_SECONDS", "8"))
LEAST_READS = 8
"""Checked reads beside the writes, however slow the machine is: until then the load goes on."""

LONGEST_SECONDS = 120.0


@dataclass
class Load:
    """What was acknowledged, what was read, and what was wrong with it."""

    acknowledged: list[tuple[int, Row]] = field(default_factory=list)
    reads: int = 0
    holes: list[str] = field(default_factory=list)
    doubles: list[str] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, writers: Sequence[Write], read: Read, *, seconds: float = LOAD_SECONDS) -> None:
        """Write from every writer at once while the reader checks; then read a last time.

        The load lasts for `seconds`, and longer until the reader has checked LEAST_READS times.
        """
        started = time.monotonic()

        def more() -> bool:
            now = time.monotonic() - started
            return now < seconds or (self.reads < LEAST_READS and now < LONGEST_SECONDS)

        threads = [
            threading.Thread(target=self._write, args=(number, write, more))
            for number, write in enumerate(writers)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            self.check(read)
        for thread in threads:
            thread.join()
        self.check(read)

    def _write(self, writer: int, write: Write, more: Callable[[], bool]) -> None:
        number = 0
        while more():
            row = (writer, number)
            try:
                token = write(row)
            except BaseException as failure:
                self.failures.append(failure)
                raise
            with self._lock:
                self.acknowledged.append((token, row))
            number += 1

    def check(self, read: Read) -> None:
        """Ask for the newest acknowledged token: every row acknowledged up to it must be there."""
        with self._lock:
            expected = list(self.acknowledged)
        if not expected:
            time.sleep(0.01)
            return
        token = max(token for token, _ in expected)
        found = Counter(read(token))
        self.reads += 1
        self.holes += [f"token {t} {row} at {token}" for t, row in expected if row not in found]
        self.doubles += [f"{row} {n} times at {token}" for row, n in found.items() if n > 1]
