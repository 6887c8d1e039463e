"""Fixtures for every room's tests: a real Postgres, a real S3 server.

The plugins are named here once; each starts its server at the first test that asks for it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

pytest_plugins = [
    name
    for name in ("postgres_fixtures", "s3_fixtures")
    if Path(__file__).with_name(f"{name}.py").is_file()
]
