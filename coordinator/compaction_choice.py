"""Which files of a table are merged next. Pure: no I/O, no clock.

Files are in tiers by size, each four times the one before. A tier that holds enough files is merged
together with everything smaller: a row is rewritten about once a tier, and the number of files
grows with the logarithm of the table's size. Files of half the target and more are done. A table
that has come to rest is merged sooner.

In a table with a partition spec each partition is merged for itself. Files that are not of one
partition of the spec, such as those of the hot tail, are merged together, and cut by it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import groupby
from typing import Final

from catalog.compaction import LiveFile
from duckmesh.partitions import PartitionSpec, is_many, is_of

_FIRST_TIER_BYTES: Final = 2**20
_TIER_FACTOR: Final = 4
_RESTING_FILES: Final = 4
_RESTING_FACTOR: Final = 64
"""A table at rest is merged once more: a layer so many times as large as the newer ones too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionSizes:
    """How large files become, and when it is worth it."""

    target_bytes: int = 128 * 2**20
    job_max_bytes: int = 2**30
    """What one merge reads at most."""
    min_files: int = 8
    flush_bytes: int = 4 * 2**20
    """Smaller sums of files below a mebibyte wait for more, or for rest."""
    flush_files: int = 64
    """The same by their number."""

    @property
    def small_bytes(self) -> int:
        """Files below this size may be merged."""
        return self.target_bytes // 2


def choose(
    files: Sequence[LiveFile], sizes: CompactionSizes, *, resting: bool, eager: bool = False
) -> list[LiveFile]:
    """The files to merge, in token order; empty when none are due.

    `resting` says that nothing was added for a while. `eager` merges whatever is small.
    """
    small = [file for file in files if file.size_bytes < sizes.small_bytes]
    tiers: dict[int, list[LiveFile]] = {}
    for file in small:
        tiers.setdefault(_tier(file), []).append(file)
    due = [tier for tier, members in tiers.items() if _is_due(tier, members, sizes, resting)]
    highest = max(tiers, default=0) if eager else max(due, default=-1)
    chosen = [file for file in small if _tier(file) <= highest]
    return _bounded(chosen, sizes) if len(chosen) > 1 else []


def choose_in_partitions(
    files: Sequence[LiveFile],
    spec: PartitionSpec,
    sizes: CompactionSizes,
    *,
    rest: timedelta,
    eager: bool = False,
) -> list[LiveFile]:
    """The files of the partition that has the most due; or those that are to be cut.

    A group of files to which nothing was added for `rest` is at rest.
    """
    groups: dict[str, list[LiveFile]] = {}
    for file in files:
        groups.setdefault(_group_of(file, spec), []).append(file)
    chosen = [_due(name, members, sizes, rest, eager) for name, members in groups.items()]
    return max(chosen, key=len, default=[])


def choose_layers(
    files: Sequence[LiveFile], sizes: CompactionSizes, *, rest: timedelta, eager: bool = False
) -> list[LiveFile]:
    """The newest files of a table with a primary key that are due, as many as make up for it.

    `files` are all of the table's; those of one largest token are a layer, and newer layers
    supersede older ones. So only neighbours are merged: the newest layers, as far back as each is
    not much larger than those behind it together. How much one merge reads has no bound here: what
    is not merged is paid for by every query.
    """
    layers = [list(layer) for _, layer in groupby(files, key=lambda file: file.max_token)]
    if not layers:
        return []
    if eager:
        return _merged(layers, 0)
    resting = all(file.age >= rest for file in layers[-1])
    factor = _RESTING_FACTOR if resting else _TIER_FACTOR
    begin = len(layers) - 1
    size_bytes = _bytes_of(layers[begin])
    while begin and _bytes_of(layers[begin - 1]) <= factor * size_bytes:
        begin -= 1
        size_bytes += _bytes_of(layers[begin])
    many = len(layers) - begin >= sizes.min_files
    down_to_the_oldest = begin == 0 and size_bytes >= sizes.flush_bytes
    return _merged(layers, begin) if many or down_to_the_oldest or resting else []


def _merged(layers: Sequence[Sequence[LiveFile]], begin: int) -> list[LiveFile]:
    """The files of the layers from that one on; none when to merge them would change nothing."""
    found = [file for layer in layers[begin:] for file in layer]
    drops = begin == 0 and any(file.delete_count for file in found)
    return found if drops or len(layers) - begin > 1 else []


def _bytes_of(layer: Sequence[LiveFile]) -> int:
    return sum(file.size_bytes for file in layer)


_UNCUT: Final = ""


def _group_of(file: LiveFile, spec: PartitionSpec) -> str:
    if not is_of(file.partition, spec):
        return _UNCUT
    return json.dumps(file.partition, sort_keys=True)


def _due(
    name: str, files: Sequence[LiveFile], sizes: CompactionSizes, rest: timedelta, eager: bool
) -> list[LiveFile]:
    resting = all(file.age >= rest for file in files)
    if name != _UNCUT:
        # Cut already: there is nothing to flush, and little to wait for.
        return choose(
            files, replace(sizes, flush_files=sizes.min_files), resting=resting, eager=eager
        )
    large = [f for f in files if is_many(f.partition) and f.size_bytes >= sizes.small_bytes]
    chosen = _bounded(large, sizes) or choose(files, sizes, resting=resting, eager=eager)
    if chosen or not (resting or eager):
        return chosen
    uncut = [f for f in files if is_many(f.partition) and (eager or f.path is not None)]
    return _bounded(uncut, sizes)


def _tier(file: LiveFile) -> int:
    tier, bound = 0, _FIRST_TIER_BYTES
    while file.size_bytes > bound:
        tier, bound = tier + 1, bound * _TIER_FACTOR
    return tier


def _is_due(tier: int, members: Sequence[LiveFile], sizes: CompactionSizes, resting: bool) -> bool:
    if resting:
        return len(members) >= min(_RESTING_FILES, sizes.min_files)
    if tier == 0:
        total = sum(file.size_bytes for file in members)
        enough = total >= sizes.flush_bytes or len(members) >= sizes.flush_files
        return enough and len(members) >= sizes.min_files
    return len(members) >= sizes.min_files


def _bounded(files: Sequence[LiveFile], sizes: CompactionSizes) -> list[LiveFile]:
    """The oldest of them, as many as one merge reads; at least two."""
    chosen: list[LiveFile] = []
    total = 0
    for file in files:
        if len(chosen) >= 2 and total + file.size_bytes > sizes.job_max_bytes:
            break
        chosen.append(file)
        total += file.size_bytes
    return chosen
