"""The resident memory of a process while something runs."""

import threading
from types import TracebackType
from typing import Final, Self

import psutil  # type: ignore[import-untyped]

_EVERY_SECONDS: Final = 0.05


def resident_megabytes(pid: int) -> float:
    """What the process holds now, in MB (10^6 bytes)."""
    return float(psutil.Process(pid).memory_info().rss) / 1e6


class MemoryWatch:
    """Samples a process's resident memory inside a `with` block."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.before_megabytes = resident_megabytes(pid)
        self.peak_megabytes = self.before_megabytes

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY_SECONDS):
            self.peak_megabytes = max(self.peak_megabytes, resident_megabytes(self._pid))
