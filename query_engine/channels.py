"""The worker's end of its channels: a thread for each, that answers one question after another."""

import itertools
import logging
import os
import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

import pyarrow as pa

from duckmesh.errors import DuckMeshError, ErrorCode, Internal
from query_engine import wire
from query_engine.failures import FailureContext, translate
from query_engine.instance import InstanceSettings
from query_engine.local import LocalAnswers
from query_engine.orders import Binding
from query_engine.question import Question
from query_engine.running import Interruption, RunningQuery
from query_engine.sandbox import address_space_bytes
from query_engine.wire import Lost, Reply, Sink, Source

_INSTANCES_MAX: Final = 8
"""A tenant has more than one while its tables change their columns, and for listings."""

_GROWN: Final = 0.75
_log = logging.getLogger(__name__)


class _Channel:
    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.stop = Interruption()
        self.stopped = False


class Channels:
    """Answers on many channels at once."""

    def __init__(self, binding: Binding, *, address_space_bytes: int) -> None:
        self._space_bytes = address_space_bytes
        self._memory_limit_bytes = binding.memory_limit_bytes
        settings = InstanceSettings(
            binding.threads,
            binding.memory_limit_bytes,
            binding.home if binding.spills else None,
            binding.temp_limit_bytes,
        )
        self._answers = LocalAnswers(
            settings, batch_rows=binding.batch_rows, instances_max=_INSTANCES_MAX
        )
        self._lock = threading.Lock()
        self._open: dict[int, _Channel] = {}

    def open(self, number: int, connected: socket.socket) -> None:
        """Answer what comes over this channel, until it ends."""
        channel = _Channel(connected)
        with self._lock:
            self._open[number] = channel
        threading.Thread(
            target=self._attend, args=(number, channel), name=f"channel-{number}", daemon=True
        ).start()

    def stop(self, number: int) -> None:
        """Stop the channel's query; the channel ends with it, so that no later one is hit."""
        with self._lock:
            channel = self._open.get(number)
        if channel is not None:
            channel.stopped = True
            channel.stop.interrupt()

    def _attend(self, number: int, channel: _Channel) -> None:
        source = Source(channel.socket)
        try:
            with suppress(Lost):
                while not channel.stopped:
                    ask, question = wire.receive_question(source)
                    sink = Sink(channel.socket)
                    if ask is wire.Ask.RUN:
                        self._run(question, sink, channel.stop)
                    else:
                        self._describe(question, sink, channel.stop)
        except BaseException:  # noqa: BLE001 - the process ends here.
            # The serving process sees every channel end, and asks another worker.
            _log.exception("a channel failed")
            os._exit(1)
        finally:
            with self._lock:
                del self._open[number]
            channel.socket.close()

    def _run(self, question: Question, sink: Sink, stop: Interruption) -> None:
        try:
            running = self._answers.run(question, stop)
        except Exception as error:  # noqa: BLE001 - told to the other end.
            self._fail(sink, error)
            return
        with running:
            try:
                first, ended = wire.first_rows(lambda: next(running.batches, None))
            except Exception as error:  # noqa: BLE001 - told to the other end.
                self._fail(sink, error)
                return
            if ended:
                wire.write_whole(sink, running.schema, first)
                wire.write_trailer(sink, None, retire=False)
                sink.send()
            else:
                self._send_rows(running, first, sink)

    def _send_rows(
        self, running: RunningQuery, first: Iterable[pa.RecordBatch], sink: Sink
    ) -> None:
        failure: DuckMeshError | None = None
        sink.write(bytes([Reply.ROWS]))
        writer = pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), running.schema)
        try:
            for batch in itertools.chain(first, running.batches):
                writer.write_batch(batch)
                sink.send()
        except Lost:
            raise
        except Exception as error:  # noqa: BLE001 - told to the other end.
            failure = self._judged(error)
        writer.close()
        wire.write_trailer(sink, failure, retire=self._is_spent(failure))
        sink.send()

    def _describe(self, question: Question, sink: Sink, stop: Interruption) -> None:
        try:
            description = self._answers.describe(question, stop)
        except Exception as error:  # noqa: BLE001 - told to the other end.
            self._fail(sink, error)
            return
        wire.write_description(sink, description)
        wire.write_trailer(sink, None, retire=False)
        sink.send()

    def _fail(self, sink: Sink, error: Exception) -> None:
        failure = self._judged(error)
        sink.write(bytes([Reply.FAILURE]))
        wire.write_trailer(sink, failure, retire=self._is_spent(failure))
        sink.send()

    def _judged(self, error: Exception) -> DuckMeshError:
        known = translate(error, FailureContext(self._memory_limit_bytes, ()))
        if isinstance(known, Internal) and known is not error:
            _log.error("a query failed in a worker", exc_info=error)
        return known

    def _is_spent(self, failure: DuckMeshError | None) -> bool:
        """Whether the failure leaves a process that should take no further query."""
        if isinstance(failure, Internal):
            return True
        if failure is None or failure.code is not ErrorCode.QUERY_MEMORY:
            return False
        # What a failed allocation was for is often kept by the allocator.
        return address_space_bytes() > _GROWN * self._space_bytes
