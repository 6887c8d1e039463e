"""How a table's rows are cut into partitions: Apache Iceberg's transforms of a column's value.

A spec is a list of fields, each a transform of one column. People write `day(ts)`; the catalog
keeps the column's field id, so that a rename changes nothing. A data file carries its own
partition: the transforms that it was written by, with their values. So a table may change its spec,
and every file still says what is in it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from duckmesh.errors import ErrorCode, Invalid

PLAIN_TRANSFORMS: Final = ("identity", "year", "month", "day", "hour")
SIZED_TRANSFORMS: Final = ("bucket", "truncate")
FIELDS_MAX: Final = 4
"""The folder of each is a part of an object's key, and keys are bounded."""
SIZE_MAX: Final = 2**31 - 1

Partition = Mapping[str, Any]
"""A file's partition: {"<field id>:<transform>": value}, in the order of the spec. Values are JSON.

Empty for a file that was written without a spec.
"""
MANY: Final[Partition] = {"many": True}
"""Of a file whose rows are of several partitions: compaction takes it apart."""

_NAME: Final = r'(?:"(?:[^"]|"")+"|[^"(),\s][^"(),]*)'
_TERM: Final = re.compile(
    rf"\s*(?:(?P<transform>[A-Za-z]+)\s*\(\s*(?:(?P<size>\d{{1,10}})\s*,\s*)?(?P<of>{_NAME})\s*\)"
    rf"|(?P<bare>{_NAME}))\s*"
)
_BARE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STORED: Final = re.compile(r"([a-z]+)(?:\[(\d+)\])?")


@dataclass(frozen=True, slots=True)
class Transform:
    """A transform by its Iceberg name; `size` is that of bucket and truncate."""

    name: str
    size: int | None = None

    def __str__(self) -> str:
        return self.name if self.size is None else f"{self.name}[{self.size}]"

    @classmethod
    def stored(cls, text: str) -> Self:
        """From the form that `str` gives."""
        found = _STORED.fullmatch(text)
        if found is None:
            raise ValueError(text)
        return cls(found[1], None if found[2] is None else int(found[2]))


@dataclass(frozen=True, slots=True)
class PartitionTerm:
    """A field of a spec as people write it: by the column's name."""

    transform: Transform
    column: str

    def __str__(self) -> str:
        column = self.column if _BARE.fullmatch(self.column) else _quoted(self.column)
        size = "" if self.transform.size is None else f"{self.transform.size}, "
        return f"{self.transform.name}({size}{column})"


@dataclass(frozen=True, slots=True)
class PartitionField:
    """A field of a spec as the catalog keeps it: by the column's field id."""

    transform: Transform
    source_id: int

    @property
    def key(self) -> str:
        """Its name in a file's partition."""
        return f"{self.source_id}:{self.transform}"


PartitionSpec = tuple[PartitionField, ...]
"""How new files of a table are cut. Empty: not at all."""


def parse_terms(texts: Sequence[str]) -> tuple[PartitionTerm, ...]:
    """Terms as people write them: `region`, `day(ts)`, `bucket(16, id)`, `truncate(4, "a b")`.

    Raises Invalid (PARTITION_SPEC_INVALID) for what is none, and for more than four.
    """
    if len(texts) > FIELDS_MAX:
        raise spec_invalid(f"a partition spec has at most {FIELDS_MAX} fields: leave some out")
    return tuple(_parse_term(text) for text in texts)


def _parse_term(text: str) -> PartitionTerm:
    found = _TERM.fullmatch(text)
    if found is None:
        raise _unread(text)
    if found["bare"] is not None:
        return PartitionTerm(Transform("identity"), _unquoted(found["bare"]))
    name = found["transform"].lower()
    size = None if found["size"] is None else int(found["size"])
    if name in PLAIN_TRANSFORMS and size is None:
        return PartitionTerm(Transform(name), _unquoted(found["of"]))
    if name in SIZED_TRANSFORMS and size is not None:
        if not 0 < size <= SIZE_MAX:
            raise spec_invalid(f"{name} takes a number from 1 to {SIZE_MAX}", field=text[:80])
        return PartitionTerm(Transform(name, size), _unquoted(found["of"]))
    raise _unread(text)


def spec_from_json(stored: Iterable[Mapping[str, Any]]) -> PartitionSpec:
    """A spec as the catalog stores it."""
    return tuple(
        PartitionField(Transform.stored(each["transform"]), int(each["source_id"]))
        for each in stored
    )


def spec_as_json(spec: PartitionSpec) -> list[dict[str, Any]]:
    """What `spec_from_json` reads; Iceberg's own names."""
    return [{"source_id": each.source_id, "transform": str(each.transform)} for each in spec]


def is_of(partition: Partition, spec: PartitionSpec) -> bool:
    """Whether the partition is one of this very spec."""
    return bool(spec) and set(partition) == {each.key for each in spec}


def is_many(partition: Partition) -> bool:
    """Whether the file's rows are known to be of several partitions."""
    return "many" in partition


def field_of(key: str) -> PartitionField:
    """The field that `PartitionField.key` names."""
    source_id, _, transform = key.partition(":")
    return PartitionField(Transform.stored(transform), int(source_id))


def spec_invalid(message: str, **context: Any) -> Invalid:
    """The refusal of a spec."""
    return Invalid(ErrorCode.PARTITION_SPEC_INVALID, message, **context)


def _unread(text: str) -> Invalid:
    return spec_invalid(
        f"{text[:80]!r} is no field of a partition spec: write identity(c), year(c), month(c), "
        "day(c), hour(c), bucket(n, c) or truncate(n, c)",
        field=text[:80],
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1].replace('""', '"') if text.startswith('"') else text
