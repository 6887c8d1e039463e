"""DirectoryStore: atomic, read-only, and clean after whoever died."""

import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from duckmesh.errors import ErrorCode, NotFound, Unavailable
from object_store.directory import DirectoryStore

KEY = "acme/events-7/part-1.parquet"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "lake"


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    return DirectoryStore(root)


def files_below(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def uploads(root: Path) -> list[Path]:
    return list((root / ".uploading").iterdir())


@contextmanager
def files_no_larger_than(size_bytes: int) -> Iterator[None]:
    """The kernel refuses longer files (EFBIG), as a full disk refuses them (ENOSPC)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_the_constructor_touches_nothing(store: DirectoryStore, root: Path) -> None:
    assert not root.exists()
    assert list(store.list("")) == []
    with pytest.raises(NotFound):
        store.get(KEY)
    assert store.sweep_uploads(timedelta(0)) == 0


def test_objects_are_read_only_files_in_place(store: DirectoryStore, root: Path) -> None:
    store.put(KEY, b"x")
    path = store.local_path(KEY)
    assert path == root / KEY
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert files_below(root) == [KEY]


def test_an_upload_is_hidden_in_the_same_file_system(store: DirectoryStore, root: Path) -> None:
    writer = store.open_writer(KEY)
    writer.file.write(b"half")
    (upload,) = uploads(root)
    assert upload.stat().st_dev == root.stat().st_dev
    assert list(store.list("")) == []
    writer.abort()
    assert uploads(root) == []


def test_a_disk_that_fills_leaves_no_half_object(store: DirectoryStore, root: Path) -> None:
    store.put("acme/before", b"x")
    writer = store.open_writer(KEY)
    with files_no_larger_than(100_000), pytest.raises(Unavailable) as caught:
        writer.file.write(b"x" * 1_000_000)
    assert caught.value.code is ErrorCode.STORE_UNAVAILABLE
    with pytest.raises(Unavailable):  # Room again: what is written so far still has a hole.
        writer.commit()
    writer.abort()
    with files_no_larger_than(100_000), pytest.raises(Unavailable):
        store.put(KEY, b"x" * 1_000_000)
    assert files_below(root) == ["acme/before"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_unavailable_and_says_what_to_do(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store.open_writer(KEY)
    assert writer._descriptor is not None
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123 - a device, not a path
        os.dup2(full.fileno(), writer._descriptor)
    with pytest.raises(Unavailable, match="disk is full") as caught:
        writer.file.write(b"x")
    assert "/" not in str(caught.value).replace(KEY, "")
    writer.abort()
    with pytest.raises(NotFound):
        store.stat(KEY)


def test_a_commit_whose_upload_was_swept_is_unavailable(store: DirectoryStore, root: Path) -> None:
    writer = store.open_writer(KEY)
    writer.file.write(b"x")
    uploads(root)[0].unlink()
    with pytest.raises(Unavailable):
        writer.commit()
    writer.abort()
    with pytest.raises(NotFound):
        store.stat(KEY)


def test_a_path_that_is_no_folder_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = DirectoryStore(tmp_path / "file")
    with pytest.raises(Unavailable) as caught:
        store.put(KEY, b"x")
    assert str(tmp_path) not in str(caught.value.as_contract())


def test_foreign_and_hidden_files_are_not_listed(store: DirectoryStore, root: Path) -> None:
    store.put(KEY, b"x")
    (root / "acme" / ".DS_Store").touch()
    (root / "acme" / "not a key").touch()
    (root / ".snapshots").mkdir()
    (root / ".snapshots" / "x").touch()
    assert [found.key for found in store.list("")] == [KEY]


DIES = """
    import os, signal
    from pathlib import Path
    from object_store.directory import DirectoryStore
    store = DirectoryStore(Path({root!r}))
    writer = store.open_writer({key!r})
    writer.file.write(b"x" * 100_000)
    {last}
    os.kill(os.getpid(), signal.SIGKILL)
"""


def die_writing(root: Path, last: str = "pass") -> None:
    program = textwrap.dedent(DIES).format(root=str(root), key=KEY, last=last)
    died = subprocess.run([sys.executable, "-c", program], check=False)
    assert died.returncode == -signal.SIGKILL


def test_a_process_that_dies_writing_leaves_no_object(store: DirectoryStore, root: Path) -> None:
    die_writing(root)
    assert list(store.list("")) == []
    assert len(uploads(root)) == 1
    store.put(KEY, b"again")
    assert store.get(KEY) == b"again"


def test_a_process_that_dies_before_the_rename_leaves_no_object(
    store: DirectoryStore, root: Path
) -> None:
    die_writing(root, last="os.fsync(writer._descriptor)")
    assert list(store.list("")) == []


def test_a_process_that_dies_after_commit_leaves_a_whole_object(
    store: DirectoryStore, root: Path
) -> None:
    die_writing(root, last="writer.commit()")
    assert store.stat(KEY).size_bytes == 100_000
    assert uploads(root) == []


def test_the_sweep_removes_uploads_of_dead_processes_only(
    store: DirectoryStore, root: Path
) -> None:
    die_writing(root)
    living = store.open_writer(KEY)
    living.file.write(b"living")
    assert store.sweep_uploads(timedelta(hours=1)) == 0
    assert len(uploads(root)) == 2
    assert store.sweep_uploads(timedelta(0)) == 1
    assert living.commit() == 6
    assert store.get(KEY) == b"living"
    assert store.sweep_uploads(timedelta(0)) == 0


def test_a_folder_removed_by_hand_is_made_again(store: DirectoryStore, root: Path) -> None:
    store.put(KEY, b"x")
    store.delete(KEY)
    (root / KEY).parent.rmdir()
    (root / ".uploading").rmdir()
    store.put(KEY, b"y")
    assert store.get(KEY) == b"y"
