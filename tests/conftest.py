"""Fixtures for every room's tests: a real Postgres, a real S3 server.

The plugins are named here once; each starts its server at the first test that asks for it.
"""

from pathlib import Path

pytest_plugins = [
    f"tests.{name}"
    for name in ("postgres_fixtures", "s3_fixtures", "room_fixtures")
    if Path(__file__).with_name(f"{name}.py").is_file()
]
