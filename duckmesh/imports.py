"""What a process does not load."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Final

_UNUSED: Final = "pandas"


class _Absent:
    """A finder that knows one module: it says that it is not installed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if name == _UNUSED:
            raise ModuleNotFoundError(f"this process does without {_UNUSED}", name=name)
        return None


def do_without_pandas() -> None:
    """Let pyarrow take pandas for not installed, in a process that holds Arrow data alone.

    Where it is installed, pyarrow loads it with the first Python value that it converts: that
    holds a new process up for a second or more, and costs 60 MB that nothing uses. Does nothing
    when it is loaded already.
    """
    if _UNUSED not in sys.modules and not any(isinstance(f, _Absent) for f in sys.meta_path):
        sys.meta_path.insert(0, _Absent())
