"""Answers questions with DuckDB in this process: a worker's, or the serving one's own."""

import contextlib
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from functools import partial

import duckdb
import pyarrow as pa

from duckmesh.errors import DuckMeshError, Invalid
from query_engine.describe import ParameterSketch
from query_engine.failures import FailureContext, translate
from query_engine.instance import Instance, InstanceSettings, Session
from query_engine.parameters import ParameterReader, identifiers
from query_engine.pool import InstancePool
from query_engine.question import Description, Question
from query_engine.running import Interruption, RunningQuery
from query_engine.stream import QueryStats, ResultStream
from query_engine.submitted import relation_of
from query_engine.watch import Guard, Watch


class LocalAnswers:
    """Runs questions in DuckDB instances, each tenant in its own. Safe from any thread."""

    def __init__(self, settings: InstanceSettings, *, batch_rows: int, instances_max: int) -> None:
        self._memory_limit_bytes = settings.memory_limit_bytes
        self._batch_rows = batch_rows
        self._parameters = ParameterReader()
        self._sketch = ParameterSketch()
        self._pool = InstancePool(settings, instances_max)
        self._watch = Watch()

    @property
    def instances(self) -> int:
        """How many DuckDB instances are open."""
        return self._pool.count

    def close(self) -> None:
        """End it. Queries still running end with their readers."""
        self._pool.close()
        self._watch.close()
        self._parameters.close()
        self._sketch.close()

    def await_ready(self, timeout: timedelta) -> bool:  # noqa: ARG002 - it is ready at once
        return True

    def run(self, question: Question, stop: Interruption) -> RunningQuery:
        """Start a query; returns when its first rows are under way, which may take long."""
        bindings = self._parameters.bindings(question.parameters, question.places)
        guard = Guard(question.limits.wall_time)
        stats = QueryStats(
            question.scanned_files, replica_files=question.replica_files, guard=guard
        )
        instance = self._lease(question)
        session = self._session(instance, question)
        guard.hold(session.cursor)
        self._watch.add(guard)
        stream = ResultStream(
            session=session,
            sql=question.sql,
            places=question.places,
            bindings=bindings,
            guard=guard,
            limits=question.limits,
            stats=stats,
            batch_rows=self._batch_rows,
            failure=FailureContext(instance.memory_limit_bytes, instance.hidden),
            on_cancel=partial(self._watch.cancel, guard),
            on_release=partial(self._release, instance, session, guard),
        )
        stop.connect(partial(self._watch.cancel, guard))
        return RunningQuery(stream, stream.open(), stats, stop)

    def describe(self, question: Question, stop: Interruption) -> Description:
        """The schemas of a query, bound and not run. What is constant in it is computed."""
        wanted = identifiers(question.places)
        types = self._sketch.types(question.sql, question.needs) if wanted else {}
        guard = Guard(question.limits.wall_time)
        former = stop.connect(partial(self._watch.cancel, guard))
        try:
            result = self._bound(question, wanted, types, guard)
        finally:
            stop.connect(former)
        fields = [pa.field(name, types.get(name) or pa.string()) for name in wanted]
        return Description(result, pa.schema(fields), is_query=True)

    def _bound(
        self,
        question: Question,
        wanted: tuple[str, ...],
        types: Mapping[str, pa.DataType],
        guard: Guard,
    ) -> pa.Schema:
        instance = self._lease(question)
        session = self._session(instance, question)
        clean = False
        try:
            guard.hold(session.cursor)
            self._watch.add(guard)
            guard.start()
            result = self._result_schema(session, instance, question.sql, wanted, types)
            clean = not guard.stopped
        except DuckMeshError as error:
            raise guard.verdict() or error from None
        else:
            return result
        finally:
            guard.stop()
            guard.hold(None)
            self._release(instance, session, guard, clean, broken=False)

    def _lease(self, question: Question) -> Instance:
        try:
            return self._pool.lease(question)
        except Exception as error:  # noqa: BLE001 - raised again below, in our words.
            hidden = (tempfile.gettempdir(), *map(str, question.directories))
            failure = translate(error, FailureContext(self._memory_limit_bytes, hidden))
        raise failure

    def _session(self, instance: Instance, question: Question) -> Session:
        """A session set up for one query. On an error the lease is ended before it is raised."""
        session = instance.session()
        try:
            instance.hold_segments(session, question.needs.relations)
            session.point(question.needs.relations, question.needs.absent)
            session.attach(question.needs.attached)
            if question.session_values is not None:
                session.remember(question.session_values)
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
        return translate(error, FailureContext(instance.memory_limit_bytes, instance.hidden))

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
            relation = relation_of(cursor, sql, values)
            with relation.limit(0).to_arrow_reader(1) as reader:
                return reader.schema
        except duckdb.Error as error:
            failure = self._translated(error, instance)
        raise failure
