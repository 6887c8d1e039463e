"""A question as DuckDB is asked it: admitted by the gate, and complete in itself.

It is made of plain values and Arrow, so that it may be answered in another process.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from query_engine.relations import Relation, RelationSet, TableRelation
from query_engine.running import Interruption, RunningQuery
from query_engine.stream import QueryLimits
from query_engine.syntax import Parameter


@dataclass(frozen=True, slots=True)
class Needs:
    """What a query reads of a relation set."""

    relations: tuple[Relation, ...]
    tables: tuple[TableRelation, ...]
    """The tables in memory whose views must exist."""
    attached: tuple[TableRelation, ...]
    """Those whose rows are read. Their sources would show in a listing, so no others are."""
    absent: tuple[str, ...]
    """Names that the query mentions and the snapshot does not have (names of CTEs)."""
    whole: RelationSet | None
    """Set when the query lists the catalog, so that it must hold exactly these tables."""
    listing: bool = False
    """Set when it lists or describes tables and reads no rows of any: `whole` is set as well."""


@dataclass(frozen=True, slots=True)
class Description:
    """The schemas of a statement. A parameter of unknown type is a string, never a null."""

    result_schema: pa.Schema
    parameter_schema: pa.Schema
    is_query: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One admitted query with everything that its answer depends on."""

    tenant: str
    directories: tuple[Path, ...]
    """The only directories that its files lie in."""
    sql: str
    places: tuple[Parameter, ...]
    """Where its parameters stand."""
    needs: Needs
    parameters: pa.RecordBatch | None = None
    limits: QueryLimits = field(default_factory=QueryLimits)
    session_values: Mapping[str, int] | None = None
    """The values of the session functions; None when the query names none of them."""

    @property
    def scanned_files(self) -> int:
        return sum(
            len(each.files) + len(each.newer) + each.segment_files for each in self.needs.relations
        )

    @property
    def replica_files(self) -> int:
        """Those of the scanned files whose rows are read from segments."""
        return sum(each.segment_files for each in self.needs.relations)


class Answering(Protocol):
    """Who answers questions: this process, or its workers. Safe from any thread.

    `run` and `describe` raise only errors of `duckmesh.errors`, and `run` returns when the first
    rows are under way. `close` ends it; queries still running end with their readers.
    """

    def await_ready(self, timeout: timedelta) -> bool:
        """Block until a first query waits for no process to start; False when that is later."""
        ...

    def run(self, question: Question, stop: Interruption) -> RunningQuery: ...

    def describe(self, question: Question, stop: Interruption) -> Description: ...

    def close(self) -> None: ...
