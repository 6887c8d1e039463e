"""What a command says when it fails, and the exit code that it ends with."""

import traceback
from collections.abc import Mapping
from typing import IO, Any, Final

import click

from duckmesh.errors import (
    Cancelled,
    Conflict,
    Corrupt,
    Denied,
    DuckMeshError,
    Exceeded,
    Fenced,
    Internal,
    Invalid,
    NotFound,
    NotSupported,
    NotYetVisible,
    Overloaded,
    Unavailable,
)

CHECK_FAILED: Final = 1
INTERRUPTED: Final = 130

EXIT_CODES: Final[Mapping[type[DuckMeshError], int]] = {
    Invalid: 2,
    NotSupported: 2,
    NotFound: 3,
    Conflict: 4,
    Denied: 5,
    Unavailable: 6,
    Overloaded: 6,
    NotYetVisible: 6,
    Exceeded: 7,
    Cancelled: INTERRUPTED,
    Fenced: 70,
    Corrupt: 70,
    Internal: 70,
}

MEANINGS: Final[Mapping[int, str]] = {
    0: "Done.",
    CHECK_FAILED: "The command ran, and what it checked is not right, or it had to be cut off.",
    2: "The command, a setting or a value is wrong: change it.",
    3: "What the command names does not exist.",
    4: "Someone was first: another process runs here, or the port is taken.",
    5: "The credential is not known, or lacks the right.",
    6: "A dependency is down, or not ready: the same command may succeed later.",
    7: "A limit was broken.",
    70: "A fault of DuckMesh's own, or stored state that contradicts itself.",
    INTERRUPTED: "Interrupted from the keyboard.",
}


class CommandFailed(click.ClickException):
    """A failure as the terminal shows it: one `error CODE: message` on standard error."""

    def __init__(self, error: DuckMeshError, *, verbose: bool) -> None:
        super().__init__(error.message)
        self.exit_code = EXIT_CODES[type(error)]  # type: ignore[misc]  # click's own way
        self._error = error
        self._verbose = verbose

    def show(self, file: IO[Any] | None = None) -> None:
        del file
        click.echo(f"error {self._error.code.value}: {self._error.message}", err=True)
        if self._verbose:
            shown = self._error.__cause__ if isinstance(self._error, Internal) else self._error
            click.echo("".join(traceback.format_exception(shown or self._error)), err=True)


def failure_of(error: Exception, *, verbose: bool) -> CommandFailed:
    """The failure to show for whatever a command raised."""
    if isinstance(error, DuckMeshError):
        return CommandFailed(error, verbose=verbose)
    internal = Internal(
        f"an internal error ({type(error).__name__}); `duckmesh -v …` shows where it arose"
    )
    internal.__cause__ = error
    return CommandFailed(internal, verbose=verbose)
