"""Pytest fixtures around the S3 server: `s3_server` for the run, `s3_bucket` for a test."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.s3_server import S3Server, new_bucket_name, running_server


@dataclass(frozen=True)
class S3Bucket:
    """A bucket of one test: empty, and a prefix that no other test uses."""

    server: S3Server
    name: str

    @property
    def url(self) -> str:
        return f"s3://{self.name}/lake"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[S3Server]:
    """One server for the run. Under xdist all workers share it, and it ends with their parent."""
    alone = worker_id == "master"
    folder = tmp_path_factory.getbasetemp()
    with running_server(
        (folder if alone else folder.parent) / "s3-server",
        watched_pid=os.getpid() if alone else os.getppid(),
    ) as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server) -> S3Bucket:
    """A fresh, empty bucket. It stays behind: a private server is thrown away with its folder."""
    name = new_bucket_name()
    s3_server.client().create_bucket(Bucket=name)
    return S3Bucket(s3_server, name)
