"""Answers SQL over the relations of one snapshot. Knows nothing of the catalog.

For now DuckDB runs inside this process. `run` and `describe` take and give plain values and Arrow
streams, so that worker processes can stand behind the same calls.
"""

import contextlib
import difflib
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import duckdb
import pyarrow as pa

from duckmesh.errors import DuckMeshError, Invalid
from query_engine.describe import Description, ParameterSketch
from query_engine.failures import FailureContext, table_missing, translate
from query_engine.instance import Instance, InstanceSettings, Session
from query_engine.parameters import ParameterReader, identifiers
from query_engine.permitted import SESSION_FUNCTIONS
from query_engine.pool import InstancePool, Needs
from query_engine.relations import RelationSet
from query_engine.statements import Statement, StatementGate, StatementKind
from query_engine.stream import QueryLimits, QueryStats, ResultStream
from query_engine.syntax import Names, is_catalog_view
from query_engine.watch import Guard, Watch

_DESCRIPTIONS_MAX: Final = 1024
_NO_LIMITS: Final = QueryLimits()


class Interruption:
    """A stop button made before the query it stops: `run` itself may work for long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requested = False
        self._stop: Any = None

    def interrupt(self) -> None:
        """Stop the query, now or as soon as it begins. Idempotent, from any thread."""
        with self._lock:
            self._requested = True
            stop = self._stop
        if stop is not None:
            stop()

    def connect(self, stop: Any) -> None:
        with self._lock:
            self._stop = stop
            requested = self._requested
        if requested:
            stop()


class RunningQuery:
    """A query whose rows are under way.

    `reader` gives them as they come, each batch small enough for one message of under 4 MiB
    (but one row is never cut), and raises only errors of `duckmesh.errors`. Read from one thread.
    """

    def __init__(
        self, stream: ResultStream, schema: pa.Schema, stats: QueryStats, stop: Interruption
    ) -> None:
        self.schema = schema
        self.stats = stats
        self._stream = stream
        self._stop = stop
        self.reader: pa.RecordBatchReader = pa.RecordBatchReader.from_batches(schema, stream)

    def interrupt(self) -> None:
        """Stop the query, from any thread; the reader then raises Cancelled. Idempotent."""
        self._stop.interrupt()

    def close(self) -> None:
        """Release everything, from any thread, without waiting for DuckDB. Idempotent."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class QueryEngine:
    """Runs queries under limits, each tenant in DuckDB instances of its own.

    Safe from any thread. `memory_limit_bytes` and `threads` hold per instance. With no
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
    ) -> None:
        self._memory_limit_bytes = memory_limit_bytes
        self._batch_rows = batch_rows
        settings = InstanceSettings(threads, memory_limit_bytes, temp_directory, temp_limit_bytes)
        self._gate = StatementGate()
        self._parameters = ParameterReader()
        self._sketch = ParameterSketch()
        self._pool = InstancePool(settings, instances_max)
        self._watch = Watch()
        self._lock = threading.Lock()
        self._described: OrderedDict[tuple[str, tuple[str, ...]], Description] = OrderedDict()

    def close(self) -> None:
        """End the engine. Queries still running end with their readers."""
        self._pool.close()
        self._watch.close()
        self._parameters.close()
        self._sketch.close()
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

    @property
    def instances(self) -> int:
        """How many DuckDB instances are open."""
        return self._pool.count

    def classify(self, sql: str) -> Statement:
        """What the statement is. Raises Invalid for a text that is not one statement."""
        return self._gate.classify(sql)

    def tables_read(self, sql: str) -> frozenset[str] | None:
        """The tenant's tables that a query names, as written; a CTE's name may be among them.

        None when the parser cannot show it, or the query lists the catalog: then every table
        counts. Needs no relations. Raises as `classify` does.
        """
        names = self._gate.classify(sql).names
        return None if names is None or names.lists_catalog else names.tables

    def describe(self, sql: str, relations: RelationSet) -> Description:
        """The schemas of a statement, bound over the relations and not run.

        A statement that is not a query has an empty result schema and no known parameters.
        Raises what binding raises.
        """
        kind = self._gate.classify(sql).kind
        if kind not in (StatementKind.QUERY, StatementKind.EXPLAIN):
            return Description(pa.schema([]), pa.schema([]), is_query=False)
        names = _names(self._gate.admit(sql))
        needs = _needs(names, relations)
        shapes = (each.column_map for each in needs.relations)
        tables = (each.table.schema.to_string() for each in needs.tables)
        key = (sql, (*shapes, *tables))
        cacheable = not needs.whole
        with self._lock:
            known = self._described.get(key) if cacheable else None
        if known is not None:
            return known
        description = self._describe(sql, names, relations, needs)
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
        bindings = self._parameters.bindings(parameters, names.parameters)
        stop = interruption or Interruption()
        guard = Guard(limits.wall_time)
        stats = QueryStats(sum(len(each.files) for each in needs.relations), guard=guard)
        instance = self._lease(relations, needs)
        session = self._session(instance, needs, names, session_values or {})
        guard.hold(session.cursor)
        self._watch.add(guard)
        stream = ResultStream(
            session=session,
            sql=sql,
            places=names.parameters,
            bindings=bindings,
            guard=guard,
            limits=limits,
            stats=stats,
            batch_rows=self._batch_rows,
            failure=FailureContext(self._memory_limit_bytes, instance.hidden),
            on_cancel=partial(self._watch.cancel, guard),
            on_release=partial(self._release, instance, session, guard),
        )
        stop.connect(partial(self._watch.cancel, guard))
        return RunningQuery(stream, stream.open(), stats, stop)

    def _lease(self, relations: RelationSet, needs: Needs) -> Instance:
        try:
            return self._pool.lease(relations, needs)
        except Exception as error:  # noqa: BLE001 - raised again below, in our words.
            hidden = (tempfile.gettempdir(), *map(str, relations.directories))
            failure = translate(error, FailureContext(self._memory_limit_bytes, hidden))
        raise failure

    def _session(
        self, instance: Instance, needs: Needs, names: Names, values: Mapping[str, int]
    ) -> Session:
        """A session set up for one query. On an error the lease is ended before it is raised."""
        session = instance.session()
        try:
            session.point(needs.relations, needs.absent)
            session.attach(needs.attached)
            if not names.functions.isdisjoint(SESSION_FUNCTIONS):
                session.remember(values)
        except Exception as error:  # noqa: BLE001 - raised again below, in our words.
            failure = self._translated(error, instance)
        else:
            return session
        instance.give_back(session, clean=False)
        self._pool.release(instance)
        raise failure

    def _release(
        self, instance: Instance, session: Session, guard: Guard, clean: bool, broken: bool
    ) -> None:
        self._watch.remove(guard)
        instance.give_back(session, clean=clean)
        self._pool.release(instance, broken=broken)

    def _translated(self, error: BaseException, instance: Instance) -> DuckMeshError:
        return translate(error, FailureContext(self._memory_limit_bytes, instance.hidden))

    def _describe(
        self, sql: str, names: Names, relations: RelationSet, needs: Needs
    ) -> Description:
        instance = self._lease(relations, needs)
        session = self._session(instance, needs, names, {})
        clean = False
        try:
            wanted = identifiers(names.parameters)
            types = self._sketch.types(sql, needs) if wanted else {}
            result = self._result_schema(session, instance, sql, wanted, types)
            clean = True
        finally:
            instance.give_back(session, clean=clean)
            self._pool.release(instance)
        fields = [pa.field(name, types.get(name) or pa.string()) for name in wanted]
        return Description(result, pa.schema(fields), is_query=True)

    def _result_schema(
        self,
        session: Session,
        instance: Instance,
        sql: str,
        wanted: tuple[str, ...],
        types: Mapping[str, pa.DataType],
    ) -> pa.Schema:
        schema = self._bound_schema(session, instance, sql, dict.fromkeys(wanted))
        if any(name not in types for name in wanted) and pa.null() in schema.types:
            # A parameter of no known type went straight into the result: it is a string.
            samples = {name: None if name in types else "" for name in wanted}
            with contextlib.suppress(Invalid):
                return self._bound_schema(session, instance, sql, samples)
        return schema

    def _bound_schema(
        self, session: Session, instance: Instance, sql: str, values: Mapping[str, str | None]
    ) -> pa.Schema:
        try:
            cursor = session.cursor
            relation = cursor.sql(sql, params=dict(values)) if values else cursor.sql(sql)
            with relation.limit(0).to_arrow_reader(1) as reader:
                return reader.schema
        except duckdb.Error as error:
            failure = self._translated(error, instance)
        raise failure


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
    for name in sorted(names.tables):
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
    if names.lists_catalog:
        return Needs(relations.relations, relations.tables, tuple(tables), tuple(absent), relations)
    return Needs(tuple(found), tuple(tables), tuple(tables), tuple(absent), None)
