"""A store whose server fails, stalls or goes away: a typed error in time, no part of an object."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from duckmesh.clock import Deadline
from duckmesh.errors import DuckMeshError, ErrorCode, NotFound, Unavailable
from object_store.open import open_store
from object_store.port import ObjectStore
from tests.faults.tcp_proxy import Fault, TcpProxy
from tests.s3_fixtures import S3Bucket

MEBIBYTE = 1024 * 1024
REQUEST_LIMIT = timedelta(seconds=4)
RETRY_LIMIT = timedelta(seconds=2)
SLACK_SECONDS = 4
"""For two busy cores."""

CALL_SECONDS = (REQUEST_LIMIT + RETRY_LIMIT).total_seconds() + SLACK_SECONDS
LARGE = b"0123456789abcdef" * (12 * MEBIBYTE // 16)
MIDWAY_BYTES = 3 * MEBIBYTE
FAULTS = [Fault.REFUSE, Fault.HANG, Fault.RESET, Fault.HALF_CLOSE, Fault.STOP_READING]


@pytest.fixture
def proxy(s3_bucket: S3Bucket) -> Iterator[TcpProxy]:
    address = urlsplit(s3_bucket.server.endpoint)
    with TcpProxy((str(address.hostname), address.port or 80)) as proxy:
        yield proxy


@pytest.fixture(params=["s3", "fsspec"])
def store(request: pytest.FixtureRequest, s3_bucket: S3Bucket, proxy: TcpProxy) -> ObjectStore:
    behind_proxy = replace(s3_bucket.server, endpoint=f"http://127.0.0.1:{proxy.port}")
    options = behind_proxy.options(
        connect_timeout=timedelta(seconds=1),
        request_timeout=REQUEST_LIMIT,
        retry_timeout=RETRY_LIMIT,
        max_retries=3,
        part_size_bytes=5 * MEBIBYTE,
    )
    url = s3_bucket.url if request.param == "s3" else f"fsspec+{s3_bucket.url}"
    return open_store(url, options=options)


@pytest.fixture
def truth(s3_bucket: S3Bucket) -> ObjectStore:
    """The same objects, not through the proxy."""
    return open_store(s3_bucket.url, options=s3_bucket.server.options())


def failure_of(act: Callable[[], Any], *, within_seconds: float) -> DuckMeshError:
    """The Unavailable that `act` raises; it must do so in time, and say nothing of the inside."""
    began = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        act()
    took = time.monotonic() - began
    assert took < within_seconds, f"took {took:.1f} s"
    assert caught.value.code is ErrorCode.STORE_UNAVAILABLE
    assert "127.0.0.1" not in str(caught.value.as_contract())
    return caught.value


def absent(store: ObjectStore, key: str) -> bool:
    try:
        store.stat(key)
    except NotFound:
        return True
    return False


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.lower())
def test_every_call_fails_typed_and_in_time_and_works_again_afterwards(
    store: ObjectStore, truth: ObjectStore, proxy: TcpProxy, fault: Fault, tmp_path: Path
) -> None:
    store.put("acme/there", b"there")
    proxy.switch(fault)
    acts: list[Callable[[], Any]] = [
        lambda: store.put("acme/new", b"new"),
        lambda: store.get("acme/there"),
        lambda: store.get_range("acme/there", start=1, length=2),
        lambda: store.stat("acme/there"),
        lambda: store.delete("acme/there"),
        lambda: list(store.list("acme")),
        lambda: store.download("acme/there", tmp_path / "copy"),
    ]
    with ThreadPoolExecutor(len(acts)) as pool:
        list(pool.map(lambda act: failure_of(act, within_seconds=2 * CALL_SECONDS), acts))
    assert not (tmp_path / "copy").exists()
    assert absent(truth, "acme/new") or truth.get("acme/new") == b"new"

    proxy.switch(Fault.PASS)
    store.put("acme/after", b"after")
    assert store.get("acme/after") == b"after"


@pytest.mark.parametrize("fault", FAULTS[1:], ids=lambda fault: fault.name.lower())
def test_a_streamed_object_that_fails_midway_leaves_nothing(
    store: ObjectStore, truth: ObjectStore, proxy: TcpProxy, fault: Fault
) -> None:
    writer = store.open_writer("acme/large")

    def stream() -> None:
        writer.file.write(LARGE)
        writer.commit()

    proxy.switch(fault, after_bytes=MIDWAY_BYTES)
    failure_of(stream, within_seconds=2 * CALL_SECONDS)
    failure_of(writer.commit, within_seconds=1)
    writer.abort()
    assert absent(truth, "acme/large")

    proxy.switch(Fault.PASS)
    assert when_recovered(lambda: stream_again(store)) == len(LARGE)
    assert truth.get("acme/large") == LARGE


def stream_again(store: ObjectStore) -> int:
    again = store.open_writer("acme/large")
    try:
        again.file.write(LARGE)
        return again.commit()
    finally:
        again.abort()


def when_recovered(act: Callable[[], int]) -> int:
    """Repeat what the server, still busy with the calls that were cut, refuses for a while."""
    deadline = Deadline.after(timedelta(seconds=60))
    while True:
        try:
            return act()
        except Unavailable:
            if deadline.passed:
                raise


@pytest.mark.parametrize("fault", FAULTS[1:], ids=lambda fault: fault.name.lower())
def test_a_commit_that_cannot_reach_the_server_shows_nothing(
    store: ObjectStore, truth: ObjectStore, proxy: TcpProxy, fault: Fault
) -> None:
    writer = store.open_writer("acme/large")
    writer.file.write(LARGE)
    proxy.switch(fault)
    failure_of(writer.commit, within_seconds=3 * CALL_SECONDS)
    writer.abort()
    assert absent(truth, "acme/large")


@pytest.mark.parametrize("fault", FAULTS[1:], ids=lambda fault: fault.name.lower())
def test_a_download_that_fails_midway_leaves_no_file(
    store: ObjectStore, proxy: TcpProxy, fault: Fault, tmp_path: Path
) -> None:
    store.put("acme/large", LARGE)
    # The S3 client resumes a read where it broke off: this is sooner than it has tries for.
    proxy.switch(fault, after_bytes=MEBIBYTE // 4)
    failure_of(
        lambda: store.download("acme/large", tmp_path / "copy"), within_seconds=2 * CALL_SECONDS
    )
    assert not (tmp_path / "copy").exists()

    proxy.switch(Fault.PASS)
    assert store.download("acme/large", tmp_path / "copy") == len(LARGE)
    assert (tmp_path / "copy").read_bytes() == LARGE


def test_a_short_outage_is_ridden_out(s3_bucket: S3Bucket, proxy: TcpProxy) -> None:
    behind_proxy = replace(s3_bucket.server, endpoint=f"http://127.0.0.1:{proxy.port}")
    store = open_store(s3_bucket.url, options=behind_proxy.options())
    store.put("acme/there", b"there")
    proxy.switch(Fault.REFUSE)
    with ThreadPoolExecutor(2) as pool:
        put = pool.submit(store.put, "acme/new", b"new")
        get = pool.submit(store.get, "acme/there")
        with pytest.raises(TimeoutError):
            put.result(0.3)
        proxy.switch(Fault.PASS)
        put.result()
        assert get.result() == b"there"
    assert store.get("acme/new") == b"new"
