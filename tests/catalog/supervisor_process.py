"""Run as a process of its own: supervise a data directory, tell its pid and DSN, live until killed.

`supervisor_process.py DATA_DIR [UID]`: with a UID, becomes that user first.
"""

import json
import os
import sys
from pathlib import Path

from catalog.embedded_postgres import EmbeddedPostgres
from duckmesh.errors import DuckMeshError


def main() -> None:
    """Print one line of JSON, then wait for the end of standard input."""
    if len(sys.argv) > 2:
        uid = int(sys.argv[2])
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    try:
        with EmbeddedPostgres(Path(sys.argv[1])) as server:
            tell(pid=server.pid, dsn=server.dsn)
            sys.stdin.read()
    except DuckMeshError as error:
        tell(error=type(error).__name__, message=str(error))


def tell(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
