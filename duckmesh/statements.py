"""Named SQL statements from the `.sql` file beside a module.

A file holds statements, each headed by `-- name: word`. SQL stays SQL: no strings in Python.
"""

import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import LiteralString, cast

_HEADING = re.compile(r"^-- name: ([a-z0-9_]+)$", re.MULTILINE)


class Statements(Mapping[str, LiteralString]):
    """The statements of one file by name. An unknown name raises KeyError at import, not at use."""

    def __init__(self, package: str, file: str) -> None:
        text = resources.files(package).joinpath(file).read_text(encoding="utf-8")
        parts = _HEADING.split(text)[1:]
        self._by_name = {
            name: cast("LiteralString", body.strip())
            for name, body in zip(parts[::2], parts[1::2], strict=True)
        }

    def __getitem__(self, name: str) -> LiteralString:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)
