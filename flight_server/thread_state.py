"""One Python thread state for the whole of a call.

pyarrow runs a call on a thread that Python does not know, and enters Python several times in it:
to start it, to run it, for its headers, for each batch, to end it. Each time CPython makes a thread
state and takes it down again, with a mapping of memory that every processor must then forget: of a
small call that is a third of the processor time. Held from the first time on, it is made once.
https://docs.python.org/3/c-api/init.html#non-python-created-threads
"""

import ctypes
import threading
from typing import Final

_API: Final = getattr(ctypes, "pythonapi", None)
"""None in a Python that is not CPython: nothing is held then."""


class HeldThreadState:
    """Holds the thread state of the thread that makes it, until `release` on that thread."""

    __slots__ = ("_before", "_thread")

    def __init__(self) -> None:
        self._thread: int | None = threading.get_ident()
        self._before: int = 0 if _API is None else _API.PyGILState_Ensure()

    def release(self) -> None:
        """Let it go; again does nothing. On another thread it stays: it is not that one's."""
        if self._thread != threading.get_ident():
            return
        self._thread = None
        if _API is not None:
            _API.PyGILState_Release(self._before)
