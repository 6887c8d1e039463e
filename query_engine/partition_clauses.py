"""PARTITIONED BY, in CREATE TABLE and ALTER TABLE, as DuckDB's grammar has it."""

from dataclasses import dataclass

from query_engine.lexemes import LexemeReader, TableName


@dataclass(frozen=True, slots=True)
class PartitionChange:
    """ALTER TABLE ... SET PARTITIONED BY, or RESET with no terms."""

    target: TableName
    if_exists: bool
    terms: tuple[str, ...]


def read_partition_change(sql: str) -> PartitionChange | None:
    """The statement that gives a table another partition spec; None for any other ALTER."""
    reader = LexemeReader(sql)
    if not reader.took("ALTER", "TABLE"):
        return None
    if_exists = reader.took("IF", "EXISTS")
    target = TableName.of(reader.path())
    if reader.took("RESET", "PARTITIONED", "BY") and reader.at_end:
        return PartitionChange(target, if_exists, ())
    terms = take_terms(reader) if reader.took("SET") else None
    return None if terms is None else PartitionChange(target, if_exists, terms)


def take_terms(reader: LexemeReader) -> tuple[str, ...] | None:
    """The terms of PARTITIONED BY (...), as they are written, if that comes next."""
    if not reader.took("PARTITIONED", "BY"):
        return None
    start = reader.position
    reader.skip_group()
    words = reader.between(start)[1:-1]
    terms: list[str] = []
    depth, begin = 0, 0
    for at, word in enumerate(words):
        depth += (word.text == "(") - (word.text == ")")
        if word.text == "," and depth == 0:
            terms.append(_text(reader, words[begin].start, words[at - 1].end))
            begin = at + 1
    if words[begin:]:
        terms.append(_text(reader, words[begin].start, words[-1].end))
    return tuple(terms)


def _text(reader: LexemeReader, start: int, end: int) -> str:
    return reader.text[start:end].decode()
