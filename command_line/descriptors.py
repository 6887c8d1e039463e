"""How many files and sockets this process may have open."""

import contextlib
import resource
from typing import Final

_ENOUGH: Final = 65_536


def use_all_descriptors() -> int:
    """Raise the soft limit as far as the hard one lets it; what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # Some systems have a lower limit still, and do not say so.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return _ENOUGH if soft == resource.RLIM_INFINITY else soft
