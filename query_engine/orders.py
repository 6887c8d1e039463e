"""What the serving process tells a worker over its control socket. Imports nothing heavy."""

import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

MESSAGE_MAX_BYTES: Final = 64 * 2**10
ORDER: Final = struct.Struct("=IQ")
"""An order, and the number of the channel that it is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Whom a worker serves, and what it may use. The first message, pickled."""

    directories: tuple[Path, ...]
    home: Path
    """The worker's own directory, and the only one that it may write."""
    spills: bool
    threads: int
    memory_limit_bytes: int
    temp_limit_bytes: int
    batch_rows: int


class Order(IntEnum):
    """Every later message."""

    OPEN = 1
    """Answer on this channel; its descriptor comes along."""
    STOP = 2
    """Stop the channel's query, and end the channel."""
