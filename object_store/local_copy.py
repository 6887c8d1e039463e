"""A new local file that holds a whole object, or does not exist."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from duckmesh.errors import ErrorCode, Invalid
from object_store.failures import local_disk_failed


@contextmanager
def new_local_file(destination: Path, key: str) -> Iterator[BinaryIO]:
    """Open `destination` for the content of `key`; remove it again when the body fails.

    Raises Invalid when it exists, and Unavailable when the local disk refuses. The body turns its
    own store's errors into ours before they get here.
    """
    try:
        file = destination.open("xb")
    except FileExistsError:
        message = "download into a file that does not exist yet"
        raise Invalid(ErrorCode.INVALID_COMMAND, message, key=key) from None
    except OSError as error:
        raise local_disk_failed(key, error) from error
    try:
        with file:
            yield file
    except BaseException as error:
        destination.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise local_disk_failed(key, error) from error
        raise
