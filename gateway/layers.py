"""The files of a table with a primary key: which of them supersede others. Pure.

Files of one largest token are a layer: no two of their rows have the same key. A row is visible
when no later layer has its key, and it does not delete that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from catalog.files import DataFile


@dataclass(frozen=True, slots=True)
class Layers:
    """A keyed table's files at a snapshot."""

    oldest: tuple[DataFile, ...]
    """Files that supersede nothing: of the first layer, unless that has rows which delete."""
    newer: tuple[DataFile, ...] = ()
    """The others, in the order of their layers: each of them counts for every query."""
    numbers: tuple[int, ...] = ()
    """Of each of the newer files the number of its layer."""


NO_LAYERS: Final = Layers(())


def layers_of(files: Sequence[DataFile], *, all_newer: bool = False) -> Layers:
    """The files of the table, in layers; their order within one is kept.

    `all_newer` when the oldest rows are elsewhere: these all count.
    """
    tokens = sorted({file.max_token for file in files})
    if not tokens:
        return NO_LAYERS
    first = tuple(file for file in files if file.max_token == tokens[0])
    oldest = () if all_newer or any(file.delete_count for file in first) else first
    number_of = {token: number for number, token in enumerate(tokens)}
    rest = sorted(
        (file for file in files if not oldest or file.max_token != tokens[0]),
        key=lambda file: file.max_token,
    )
    return Layers(oldest, tuple(rest), tuple(number_of[file.max_token] for file in rest))
