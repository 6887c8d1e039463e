"""The URL chooses the store."""

from pathlib import Path

import pytest

from duckmesh.errors import Invalid, NotSupported, Unavailable
from object_store.directory import DirectoryStore
from object_store.fsspec_store import FsspecStore
from object_store.open import open_store
from object_store.options import StoreOptions
from object_store.s3 import S3Store


def test_a_file_url_and_a_path_name_a_directory(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    for url in (str(folder), f"file://{folder}", f"file://localhost{folder}".replace(" ", "%20")):
        store = open_store(url)
        assert isinstance(store, DirectoryStore)
        assert store.local_path("k") == folder / "k"


def test_the_scheme_chooses_the_kind() -> None:
    options = StoreOptions(region="us-east-1", access_key_id="a", secret_access_key="b")
    assert isinstance(open_store("s3://bucket", options=options), S3Store)
    assert isinstance(open_store("s3://bucket/a/b/", options=options), S3Store)
    assert isinstance(open_store("fsspec+s3://bucket/a", options=options), FsspecStore)
    assert isinstance(open_store("fsspec+memory://lake"), FsspecStore)


@pytest.mark.parametrize(
    "url",
    ["", "file://", "file://host/dir", "s3://", "s3:///x", "s3://b/../c", "ftp://h/d",
     "s3://b?x=1", "fsspec+s3", "fsspec+s3://"],
)  # fmt: skip
def test_what_names_no_store_is_invalid(url: str) -> None:
    with pytest.raises(Invalid):
        open_store(url)


def test_fsspec_on_a_local_path_is_refused_and_names_the_way() -> None:
    with pytest.raises(NotSupported, match="file:///folder"):
        open_store("fsspec+file:///tmp/x")


def test_a_filesystem_that_shows_unfinished_objects_fails_its_probe() -> None:
    """fsspec's own memory filesystem takes `autocommit=False` and does not heed it."""
    store = open_store("fsspec+memory://lake")
    with pytest.raises(Unavailable, match="shows unfinished objects"):
        store.probe()
    store.put("a/b", b"x")
    assert [(stat.key, stat.size_bytes) for stat in store.list("a")] == [("a/b", 1)]
    assert list(store.list("none")) == []


def test_credentials_do_not_show() -> None:
    shown = repr(
        StoreOptions(
            access_key_id="who-1",
            secret_access_key="secret-2",
            session_token="token-3",
            fsspec_options={"token": "token-4"},
        )
    )
    assert not any(secret in shown for secret in ("who-1", "secret-2", "token-3", "token-4"))
