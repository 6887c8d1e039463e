"""What a write needs its table to be, and makes of it."""

from enum import StrEnum
from typing import Final


class IngestMode(StrEnum):
    """What the table must be before the write, and what it holds after it (ADBC's four modes)."""

    APPEND = "append"
    CREATE = "create"
    CREATE_APPEND = "create_append"
    REPLACE = "replace"


ADDING: Final = (IngestMode.APPEND, IngestMode.CREATE_APPEND)
"""The modes that only add rows to a table that is there."""
