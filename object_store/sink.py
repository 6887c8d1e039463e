"""The file that a writer gives away: closing it publishes nothing."""

import io
from collections.abc import Callable
from typing import Any


class Sink(io.RawIOBase):
    """A writable, non-seekable file that hands every write to `accept`, in order.

    Close only ends the writing. pyarrow closes the file it writes to also when an exception passes
    by; a file whose close completes an upload then shows a reader half an object.
    """

    def __init__(self, accept: Callable[[memoryview], None]) -> None:
        super().__init__()
        self._accept = accept
        self._written_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, content: Any, /) -> int:
        """Take all of `content` (any bytes-like). Raises Unavailable when the store fails."""
        if self.closed:
            raise ValueError("write to a closed file")
        with memoryview(content) as view:
            flat = view.cast("B")
            self._accept(flat)
            size = flat.nbytes
        self._written_bytes += size
        return size

    def tell(self) -> int:
        return self._written_bytes
