"""The processor time of a process and of those that it started."""

from contextlib import suppress

import psutil  # type: ignore[import-untyped]


def processor_seconds(pid: int) -> float:
    """What the process and its living children have used; what a child used that died is lost."""
    used = 0.0
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for each in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                used += times.user + times.system
    return used
