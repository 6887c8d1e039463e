"""The errors that leave this room. Messages name the key, never a path, endpoint or credential."""

import errno

from duckmesh.errors import ErrorCode, Invalid, NotFound, Unavailable

_REASONS = {
    errno.ENOSPC: "its disk is full; free space or enlarge it",
    errno.EDQUOT: "its disk quota is used up; free space or raise the quota",
    errno.EROFS: "it is mounted read-only; mount it writable",
    errno.EACCES: "this process may not use it; check the rights on it",
    errno.EPERM: "this process may not use it; check the rights on it",
    errno.EMFILE: "this process has too many open files; raise its limit",
}


def missing(key: str) -> NotFound:
    return NotFound(ErrorCode.NOT_FOUND, "there is no object under this key", key=key)


def unavailable(act: str, key: str, reason: str = "retry with backoff") -> Unavailable:
    """The store did not do `act`. Whether it did so half is never in doubt: it did not."""
    return Unavailable(
        ErrorCode.STORE_UNAVAILABLE, f"the object store could not {act}: {reason}", key=key
    )


def no_bucket(key: str) -> Unavailable:
    reason = "its bucket does not exist; create it, or allow that it is created"
    return unavailable("store the object", key, reason)


def from_os_error(act: str, key: str, error: OSError) -> Unavailable:
    """A file system's refusal, with what to do about it where that is known."""
    return unavailable(act, key, _REASONS.get(error.errno or 0, "its file system failed"))


def local_disk_failed(key: str, error: OSError) -> Unavailable:
    reason = _REASONS.get(error.errno or 0, "its file system failed")
    return Unavailable(
        ErrorCode.STORE_UNAVAILABLE,
        f"the disk for local copies of objects could not take this one: {reason}",
        key=key,
    )


def bad_range(key: str, start: int, length: int, size_bytes: int | None = None) -> Invalid:
    return Invalid(
        ErrorCode.INVALID_COMMAND,
        "a range starts inside the object and has at least one byte",
        key=key,
        start=start,
        length=length,
        size_bytes=size_bytes,
    )


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a full disk is at the root of `error`, through its chain of causes."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return True
        error = error.__cause__
    return False
