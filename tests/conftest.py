"""Fixtures for every room's tests: a real Postgres, a real S3 server.

The plugins are named here once; each starts its server at the first test that asks for it.
"""

from pathlib import Path

from hypothesis import HealthCheck, settings

# A machine that others use as well is slow now and then, and that says nothing of an example.
settings.register_profile("duckmesh", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("duckmesh")

pytest_plugins = [
    f"tests.{name}"
    for name in ("postgres_fixtures", "s3_fixtures", "room_fixtures")
    if Path(__file__).with_name(f"{name}.py").is_file()
]
