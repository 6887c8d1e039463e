"""A running service, and the commands that talk to one in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import service

SETTINGS = {
    "DUCKMESH_AUTH_DEFAULT_TENANT": "shell",
    # What the commands do is judged here, and not how fast a shared machine is.
    "DUCKMESH_QUERY_CONSISTENCY_TIMEOUT_MS": "30000",
}


@contextmanager
def running_service(dsn: str, folder: Path) -> Iterator[str]:
    """A serving process and a coordinator; the URI."""
    with service(dsn, folder, **SETTINGS) as processes:
        uri = processes.serve()[1]
        processes.coordinate("shell")
        yield uri


def duckmesh(
    *arguments: str, uri: str | None = None, stdin: str = "", **environment: str
) -> "subprocess.CompletedProcess[str]":
    """A command in a process of its own, to its end."""
    named = {} if uri is None else {"DUCKMESH_URI": uri}
    return subprocess.run(
        [sys.executable, "-P", "-m", "command_line.main", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**os.environ, **named, **environment},
    )
