"""Answers SQL over the relations of one snapshot. Knows nothing of the catalog.

The gate stays in this process; DuckDB runs behind `Answering`.
"""

import difflib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa

from query_engine.failures import table_missing
from query_engine.instance import InstanceSettings
from query_engine.local import LocalAnswers
from query_engine.parameters import plain_values
from query_engine.permitted import SESSION_FUNCTIONS
from query_engine.predicates import Predicate
from query_engine.question import Answering, Description, Needs, Question
from query_engine.relations import RelationSet
from query_engine.remote import RemoteAnswers
from query_engine.running import Interruption, RunningQuery
from query_engine.scratch import Scratch
from query_engine.statements import Statement, StatementGate, StatementKind
from query_engine.stream import QueryLimits
from query_engine.syntax import Names, is_catalog_view
from query_engine.time_travel import TableVersion
from query_engine.views import ViewExpander
from query_engine.worker_pool import WorkerPool, WorkerSettings

__all__ = ["Description", "Interruption", "QueryEngine", "RunningQuery", "WorkerSettings"]

_DESCRIPTIONS_MAX: Final = 1024
_NO_LIMITS: Final = QueryLimits()

_LITERALS_SQL_MAX: Final = 1000
_FOR_LITERALS: Final = InstanceSettings(
    threads=1, memory_limit_bytes=32 * 2**20, temp_directory=None, temp_limit_bytes=0
)


class QueryEngine:
    """Runs queries under limits, each tenant in DuckDB instances of its own.

    Safe from any thread. Without `workers`, or with none, DuckDB runs in this process, where
    `memory_limit_bytes` and `threads` hold per instance; else per worker. With no
    `temp_directory` nothing is spilled to disk: a query that needs more memory then fails.
    """

    def __init__(
        self,
        *,
        threads: int,
        memory_limit_bytes: int,
        temp_directory: Path | None,
        batch_rows: int = 65_536,
        instances_max: int = 16,
        temp_limit_bytes: int = 10 * 2**30,
        workers: WorkerSettings | None = None,
    ) -> None:
        settings = InstanceSettings(threads, memory_limit_bytes, temp_directory, temp_limit_bytes)
        self._gate = StatementGate()
        self._scratch = Scratch()
        self._views = ViewExpander(self._scratch)
        self._answers: Answering
        if workers is None or workers.workers == 0:
            self._answers = LocalAnswers(
                settings, batch_rows=batch_rows, instances_max=instances_max
            )
        else:
            pool = WorkerPool(workers, settings, batch_rows=batch_rows)
            self._answers = RemoteAnswers(pool, memory_limit_bytes=memory_limit_bytes)
        self._literals = LocalAnswers(_FOR_LITERALS, batch_rows=batch_rows, instances_max=1)
        self._lock = threading.Lock()
        self._described: OrderedDict[tuple[str, tuple[str, ...]], Description] = OrderedDict()

    def close(self) -> None:
        """End the engine. Queries still running end with their readers."""
        self._answers.close()
        self._literals.close()
        self._scratch.close()
        self._gate.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def await_ready(self, timeout: timedelta) -> bool:
        """Block until a first query waits for no process to start; False when that is later."""
        return self._answers.await_ready(timeout)

    def classify(self, sql: str) -> Statement:
        """What the statement is. Raises Invalid for a text that is not one statement."""
        return self._gate.classify(sql)

    def tables_read(self, sql: str) -> frozenset[str] | None:
        """The tenant's tables that a query names, as written; a CTE's name may be among them.

        None when the parser cannot show it, or the query lists the catalog: then every table
        counts. Needs no relations. Raises as `classify` does.
        """
        names = self._gate.classify(sql).names
        return None if names is None or names.lists_catalog else names.tables | names.described

    def tables_scanned(self, sql: str) -> frozenset[str]:
        """Those of `tables_read` whose rows are read: only these need their files."""
        names = self._gate.classify(sql).names
        return frozenset() if names is None else names.tables

    def predicates(self, sql: str) -> Mapping[str, Predicate]:
        """What the query asks of the rows of its tables, by lower-case name. Never too strict."""
        names = self._gate.classify(sql).names
        return {} if names is None else names.predicates

    def parameter_values(self, sql: str, parameters: pa.RecordBatch | None) -> Mapping[str, Any]:
        """The values of one row of parameters by identifier; those that Python lacks are left out.

        Of several rows there is no one value, and none is given.
        """
        names = self._gate.classify(sql).names
        if names is None or parameters is None or parameters.num_rows != 1:
            return {}
        return plain_values(parameters, names.parameters)

    def with_views(self, sql: str, views: Mapping[str, str]) -> str:
        """The query over tables that it stands for; `views` are queries by lower-case name.

        Needs no relations. Raises Invalid (SQL_NOT_ALLOWED) for a view that reads itself.
        """
        return self._views.expand(sql, views)

    def system_tables_read(self, sql: str) -> frozenset[str]:
        """The tables of `duckmesh_system` that a query names, in lower case."""
        names = self._gate.classify(sql).names
        return frozenset() if names is None else frozenset(name for _, name in names.system_tables)

    def table_versions(self, sql: str) -> tuple[TableVersion, ...]:
        """The tables that a query reads AT a version, in the order of its text; needs no relations.

        They are not among `tables_read`. `now()` is the time of the call. Raises as `classify`
        does, and Invalid for a value that is neither a snapshot's number nor a time.
        """
        return self._gate.table_versions(sql)

    def with_relations(self, sql: str, names: Sequence[str]) -> str:
        """The query reading the relations of these names, one for each of its `table_versions`.

        Only such a text can be described and run.
        """
        return self._gate.with_relations(sql, names)

    def with_versions(self, sql: str, versions: Sequence[int]) -> str:
        """The query naming these snapshots, one for each of its `table_versions`."""
        return self._gate.with_versions(sql, versions)

    def describe(
        self,
        sql: str,
        relations: RelationSet,
        *,
        limits: QueryLimits = _NO_LIMITS,
        interruption: Interruption | None = None,
    ) -> Description:
        """The schemas of a statement, bound over the relations and not run.

        A statement that is not a query has an empty result schema and no known parameters.
        Raises what binding raises: it computes what is constant, so `limits` hold here too, and
        `interruption` stops it.
        """
        kind = self._gate.classify(sql).kind
        if kind not in (StatementKind.QUERY, StatementKind.EXPLAIN):
            return Description(pa.schema([]), pa.schema([]), is_query=False)
        names = _names(self._gate.admit(sql))
        needs = _needs(names, relations)
        shapes = (each.shape for each in needs.relations)
        tables = (each.table.schema.to_string() for each in needs.tables)
        key = (sql, (*shapes, *tables))
        cacheable = not needs.whole
        with self._lock:
            known = self._described.get(key) if cacheable else None
        if known is not None:
            return known
        question = replace(_question(sql, names, relations, needs), limits=limits)
        answers, question = self._who_answers(names, question)
        description = answers.describe(question, interruption or Interruption())
        if cacheable:
            with self._lock:
                self._described[key] = description
                if len(self._described) > _DESCRIPTIONS_MAX:
                    self._described.popitem(last=False)
        return description

    def run(
        self,
        sql: str,
        relations: RelationSet,
        *,
        parameters: pa.RecordBatch | None = None,
        limits: QueryLimits = _NO_LIMITS,
        session_values: Mapping[str, int] | None = None,
        interruption: Interruption | None = None,
    ) -> RunningQuery:
        """Start a query; returns when its first rows are under way, which may take long.

        Several rows of parameters give their results one after the other, each run when the one
        before is read. `session_values` are the values of the functions `last_visibility_token`
        and `duckmesh_last_token`. A snapshot published meanwhile changes nothing for this query.

        Raises Invalid, NotSupported and NotFound for what may not or cannot run, Exceeded
        for its limits, Cancelled when `interruption` was used, Unavailable for a lost data file.
        """
        names = _names(self._gate.admit(sql))
        needs = _needs(names, relations)
        session = not names.functions.isdisjoint(SESSION_FUNCTIONS)
        question = replace(
            _question(sql, names, relations, needs),
            parameters=parameters,
            limits=limits,
            session_values=(session_values or {}) if session else None,
        )
        answers, question = self._who_answers(names, question)
        return answers.run(question, interruption or Interruption())

    def _who_answers(self, names: Names, question: Question) -> tuple[Answering, Question]:
        """Literals need no worker, and no tenant: what is in such a text cannot hurt anybody."""
        if not names.only_literals or len(question.sql) > _LITERALS_SQL_MAX:
            return self._answers, question
        # One instance for everybody: it is chosen by tenant, directories and memory.
        limits = replace(question.limits, memory_bytes=None)
        return self._literals, replace(question, tenant="", directories=(), limits=limits)


def _names(statement: Statement) -> Names:
    if statement.names is None:
        raise TypeError("an admitted statement has names")
    return statement.names


def _needs(names: Names, relations: RelationSet) -> Needs:
    """What the query reads. Raises NotFound for a table that is not among the relations.

    DuckDB never gets to look for an unknown name itself: it would look for a file.
    """
    by_name = relations.by_name
    found, absent = [], []
    for name in sorted(names.tables | names.described):
        folded = name.lower()
        if folded in by_name:
            found.append(by_name[folded])
        elif folded in names.ctes:
            absent.append(folded)
        elif not is_catalog_view(folded):
            close = difflib.get_close_matches(folded, by_name, n=1)
            raise table_missing(name, by_name[close[0]].name if close else None)
    tables = []
    for schema, folded in sorted(names.system_tables):
        table = relations.tables_by_name.get((schema, folded))
        if table is None:
            raise table_missing(f"{schema}.{folded}", None)
        tables.append(table)
    if _only_lists(names, relations):
        return Needs((), (), (), (), relations, listing=True)
    if names.lists_catalog:
        return Needs(relations.relations, relations.tables, tuple(tables), tuple(absent), relations)
    return Needs(tuple(found), tuple(tables), tuple(tables), tuple(absent), None)


def _only_lists(names: Names, relations: RelationSet) -> bool:
    """Whether it asks for tables and their columns, and for no rows of any."""
    if names.system_tables or not (names.lists_catalog or names.described):
        return False
    return relations.by_name.keys().isdisjoint(name.lower() for name in names.tables)


def _question(sql: str, names: Names, relations: RelationSet, needs: Needs) -> Question:
    return Question(
        tenant=relations.tenant,
        directories=relations.directories,
        sql=sql,
        places=names.parameters,
        needs=needs,
    )
