"""SQL LIKE as the metadata commands use it."""

from collections.abc import Callable
from typing import Final

_ANY: Final = object()
"""Any substring."""
_ONE: Final = object()
"""Any one character."""


def like(pattern: str | None) -> Callable[[str], bool]:
    """A test of names: `%` is any substring, `_` any one character, `\\` escapes; None is all.

    Any text is a pattern (pandas sends whole SQL statements), and none is slow: the test takes at
    most len(pattern) * len(name) steps, where a regular expression could be made to run for ever.
    """
    if pattern is None or pattern == "%":
        return lambda _: True
    parts = _parse(pattern)
    return lambda name: _matches(parts, name)


def _parse(pattern: str) -> list[object]:
    parts: list[object] = []
    characters = iter(pattern)
    for character in characters:
        match character:
            case "%":
                parts.append(_ANY)
            case "_":
                parts.append(_ONE)
            case "\\":
                parts.append(next(characters, "\\"))
            case _:
                parts.append(character)
    return parts


def _matches(parts: list[object], name: str) -> bool:
    """Greedy match: on a mismatch only the last `%` takes one character more."""
    part = at = 0
    after_any, resume = -1, 0
    while at < len(name):
        here = parts[part] if part < len(parts) else None
        if here is _ANY:
            part += 1
            after_any, resume = part, at
        elif here is _ONE or here == name[at]:
            part, at = part + 1, at + 1
        elif after_any >= 0:
            resume += 1
            part, at = after_any, resume
        else:
            return False
    return all(each is _ANY for each in parts[part:])
