"""The progress of an ingest: a line that moves on a terminal, and nothing anywhere else."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.progress import TransferSpeedColumn as Rate


class Progress(Protocol):
    """Told by the reader how far it is; safe from the thread that reads."""

    def file(self, name: str, size_bytes: int) -> AbstractContextManager[None]:
        """One file, for the length of the block."""

    def advance(self, rows: int, position: int) -> None:
        """So many more rows are sent, and the file is read up to `position`."""


class _Silent:
    @contextmanager
    def file(self, name: str, size_bytes: int) -> Iterator[None]:
        del name, size_bytes
        yield

    def advance(self, rows: int, position: int) -> None:
        """Nobody looks."""


class _Shown:
    def __init__(self, bars: Bars, files: int) -> None:
        self._bars = bars
        self._files = files
        self._number = 0
        self._rows = 0
        self._task: TaskID | None = None

    @contextmanager
    def file(self, name: str, size_bytes: int) -> Iterator[None]:
        self._number += 1
        self._rows = 0
        place = f"{self._number}/{self._files} " if self._files > 1 else ""
        self._task = self._bars.add_task(f"{place}{name}", total=size_bytes, rows="0")
        try:
            yield
        finally:
            self._bars.remove_task(self._task)

    def advance(self, rows: int, position: int) -> None:
        self._rows += rows
        if self._task is not None:
            self._bars.update(self._task, completed=position, rows=f"{self._rows:,}")


@contextmanager
def progress(files: int) -> Iterator[Progress]:
    """Where an ingest of so many files tells its progress; gone when the block ends."""
    if not sys.stderr.isatty():
        yield _Silent()
        return
    bars = Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[rows]} rows"),
        DownloadColumn(binary_units=True),
        Rate(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bars:
        yield _Shown(bars, files)
