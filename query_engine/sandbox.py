"""Walls around a worker, from inside it: each one holds when the ones before it fall.

Linux only, and each as far as the kernel and the container allow: a wall that cannot be had is
left out, and said. `docs/security.md` tells what each of them stops.
"""

import ctypes
import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_CAPABILITY_VERSION: Final = 0x20080522
_CAP_DAC_OVERRIDE: Final = 1 << 1
_CAP_DAC_READ_SEARCH: Final = 1 << 2

_LANDLOCK_CREATE_RULESET: Final = 444
_LANDLOCK_ADD_RULE: Final = 445
_LANDLOCK_RESTRICT_SELF: Final = 446
_LANDLOCK_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_FILE_RIGHTS: Final = (1 << 0) | (1 << 1) | _READ_FILE | (1 << 14)
_FS_RIGHTS_BY_ABI: Final = ((1, 13), (2, 14), (3, 15), (5, 16))
"""From which version of Landlock on so many of the file rights are known."""

_NET_RIGHTS: Final = 0b11  # TCP bind and connect; from version 4
_SCOPES: Final = 0b11  # abstract Unix sockets and signals; from version 6

_NICENESS: Final = 1
"""Enough to let the door go first; more starves big streams on a machine that is full."""

_OOM_SCORE: Final = "500"

_libc: Final = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)  # It died before the call above: nobody would send the signal.


def renounce_privileges() -> bool:
    """No set-user-id program, no capability but reading files, no core dump, no ptrace by peers."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)
    return _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def leave_network() -> bool:
    """Move to a network of its own, with nothing in it. Call it while there is one thread only."""
    uid, gid = os.getuid(), os.getgid()
    if _libc.unshare(_CLONE_NEWNET) == 0:
        return True
    if _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    with suppress(OSError):
        # Itself and no one else, so that files may still be made.
        Path("/proc/self/setgroups").write_text("deny", "ascii")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1", "ascii")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1", "ascii")
    return True


def yield_to_others() -> None:
    """Let the serving process run first, and the kernel choose this one when memory ends."""
    os.nice(_NICENESS)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, "ascii")


def limit_resources(*, address_space_bytes: int, file_bytes: int) -> None:
    """What the process may have in all. Allocations beyond it fail; nothing is killed."""
    _limit(resource.RLIMIT_AS, address_space_bytes)
    _limit(resource.RLIMIT_FSIZE, file_bytes)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def drop_capabilities() -> bool:
    """Keep of root's rights only those to read files that others own."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Data(ctypes.Structure):
        _fields_ = (
            ("effective", ctypes.c_uint32),
            ("permitted", ctypes.c_uint32),
            ("inheritable", ctypes.c_uint32),
        )

    header = Header(_CAPABILITY_VERSION, 0)
    held = (Data * 2)()
    if _libc.capget(ctypes.byref(header), held) != 0:
        return False
    kept = held[0].permitted & (_CAP_DAC_OVERRIDE | _CAP_DAC_READ_SEARCH)
    wanted = (Data * 2)(Data(kept, kept, 0), Data(0, 0, 0))
    return bool(_libc.capset(ctypes.byref(header), wanted) == 0)


def see_only(*, read: Iterable[Path], write: Iterable[Path]) -> bool:
    """Let this thread, and those it starts, open nothing but these and Python's own files.

    A path that does not exist is left out. No TCP, and no signal to a process outside. False, and
    nothing is changed, where the kernel has no Landlock.
    """
    version = _syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION)
    if version < 1:
        return False
    rights = (1 << max(count for abi, count in _FS_RIGHTS_BY_ABI if abi <= version)) - 1
    handled = (ctypes.c_uint64 * 3)(
        rights, _NET_RIGHTS if version >= 4 else 0, _SCOPES if version >= 6 else 0
    )
    size = 8 * (1 if version < 4 else 2 if version < 6 else 3)
    ruleset = _syscall(_LANDLOCK_CREATE_RULESET, ctypes.byref(handled), size, 0)
    if ruleset < 0:
        return False
    try:
        for path in (*read, *_own_files()):
            _allow(ruleset, path, _READ_FILE | _READ_DIR)
        for path in write:
            _allow(ruleset, path, rights)
        return _syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0, 0) == 0
    finally:
        os.close(ruleset)


def address_space_bytes() -> int:
    """What this process has of it now."""
    pages = int(os.pread(_statm(), 256, 0).split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


@cache
def _statm() -> int:
    # Opened once, while it may still be: the walls close /proc.
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def _own_files() -> Iterable[Path]:
    """What Python may still import or read later. The settings file lies in none of them."""
    here = Path(__file__).parent
    yield from (here, here.parent / "duckmesh")
    for name in ("stdlib", "platstdlib", "purelib", "platlib"):
        yield Path(sysconfig.get_path(name))
    yield from map(Path, (sys.executable, "/lib", "/lib64", "/usr/lib", "/usr/lib64"))
    yield from map(Path, ("/usr/share/zoneinfo", "/etc/localtime", "/etc/ld.so.cache"))
    yield from map(Path, ("/dev/null", "/dev/zero", "/dev/urandom"))
    # DuckDB asks for its share of the machine; it aborts when it may not look at its own cgroup.
    yield from map(Path, ("/proc/self/cgroup", "/sys/fs/cgroup", "/sys/devices/system/cpu"))


def _allow(ruleset: int, path: Path, rights: int) -> None:
    class Rule(ctypes.Structure):
        _pack_ = 1
        _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))

    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        given = rights if path.is_dir() else rights & _FILE_RIGHTS
        _syscall(_LANDLOCK_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(Rule(given, opened)), 0)
    finally:
        os.close(opened)


def _limit(which: int, wanted: int) -> None:
    _, hard = resource.getrlimit(which)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(which, (limit, limit))


def _prctl(option: int, value: int) -> bool:
    return bool(_libc.prctl(option, value, 0, 0, 0) == 0)


def _syscall(number: int, *arguments: object) -> int:
    return int(_libc.syscall(number, *arguments))
