"""The Flight SQL door: how it listens, and how each call begins and ends.

Calls arrive on the one thread that moves bytes. Each is given a thread of its own when its first
message is here, for what it does may block. Every one runs inside the boundary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final

import structlog

from duckmesh.errors import DuckMeshError, Internal
from duckmesh.threads import Threads
from flight_server.authenticate import Authentication, Call
from flight_server.boundary import Failed, boundary, end_with, failed
from flight_server.calls import CallsInFlight, Place, out_of_threads
from flight_server.counts import CallCount
from flight_server.headers import trace_id_of
from flight_server.quick_appends import QuickAppends
from flight_server.quick_stream import Arrival
from flight_server.rpcs import Rpcs
from flight_server.sessions import Sessions
from flight_server.tickets import Seal
from gateway.credentials import Authenticator
from gateway.reads import Reads
from gateway.sessions import ClientSessions
from gateway.sql_writes import SqlWrites
from gateway.transactions import Transactions
from gateway.writes import Writes
from grpc_transport.calls import Call as Rpc
from grpc_transport.messages import MESSAGE_MAX_BYTES
from grpc_transport.server import CONNECTIONS_MAX, GrpcServer, Tls
from grpc_transport.status import Status

_REQUEST_MAX_BYTES: Final = 32 * 2**20
"""Of a message that holds no rows: the longest statement in the longest of UTF-8 fits twice."""

_SERVICE: Final = "/arrow.flight.protocol.FlightService/"
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorOptions:
    """How the door listens, and its limits."""

    host: str = "127.0.0.1"
    port: int = 0
    tls: Tls | None = None
    calls_max: int = 1024
    connections_max: int = CONNECTIONS_MAX
    stream_window: int = 32
    session_lifetime: timedelta = timedelta(hours=24)
    ticket_lifetime: timedelta = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class _Method:
    """One RPC of Flight: what it does, and how its calls are let in."""

    name: str
    run: Callable[[Call], None]
    finishes: bool = False
    """It ends what an earlier call began: admitted while the server drains."""
    tells_at_once: bool = True
    begins_at_once: bool = False
    """Its caller may wait for an answer before he says anything."""
    message_max_bytes: int = _REQUEST_MAX_BYTES


class FlightDoor:
    """Serves from its construction on. `drain`, then `close`, end it."""

    def __init__(
        self,
        options: DoorOptions,
        *,
        reads: Reads,
        writes: Writes,
        sessions: ClientSessions,
        sql_writes: SqlWrites,
        transactions: Transactions,
        authenticator: Authenticator,
        seal: Seal,
    ) -> None:
        rpcs = Rpcs(
            reads=reads,
            writes=writes,
            sessions=sessions,
            sql_writes=sql_writes,
            transactions=transactions,
            authenticator=authenticator,
            seal=seal,
            stream_window=options.stream_window,
            ticket_lifetime=options.ticket_lifetime,
        )
        known = Sessions(seal, sessions, lifetime=options.session_lifetime)
        self._authentication = Authentication(authenticator, known)
        self._calls = CallsInFlight(options.calls_max)
        self._threads = Threads("flight")
        methods = (
            _Method("Handshake", rpcs.handshake, begins_at_once=True),
            _Method("ListFlights", rpcs.list_flights),
            _Method("GetFlightInfo", rpcs.get_flight_info),
            _Method("PollFlightInfo", rpcs.poll_flight_info),
            _Method("GetSchema", rpcs.get_schema),
            _Method("DoGet", rpcs.do_get, finishes=True),
            # A write tells its token in the header that tells of a new session: it waits for that.
            _Method("DoPut", rpcs.do_put, tells_at_once=False, message_max_bytes=MESSAGE_MAX_BYTES),
            _Method("DoExchange", rpcs.do_exchange),
            _Method("DoAction", rpcs.do_action, finishes=True),
            _Method("ListActions", rpcs.list_actions),
        )
        self._methods = {_SERVICE + each.name: each for each in methods}
        self._server = GrpcServer(
            self._arrived,
            host=options.host,
            port=options.port,
            tls=options.tls,
            connections_max=options.connections_max,
        )
        self.port = self._server.port
        self._appends = QuickAppends(
            writes,
            self._authentication,
            window=options.stream_window,
            soon=self._server.ask,
            watch=self._server.watch,
            on_a_thread=self._threads.run,
        )
        self._server.start()

    @property
    def calls_in_flight(self) -> int:
        return int(self._calls.count)

    def drain(self, grace: timedelta) -> bool:
        """Refuse new calls, let those in flight end, cancel what outlasts `grace`.

        Whether all have ended, after at most twice `grace`.
        """
        return self._calls.drain(grace)

    def close(self) -> None:
        """Stop listening, and end what is left: `drain` first."""
        self._server.close()
        self._threads.close()

    # ---- How a call begins and ends

    def _arrived(self, rpc: Rpc) -> None:
        """A new call: on the thread that moves bytes, so nothing here blocks."""
        method = self._methods.get(rpc.path)
        if method is None or not rpc.request.is_grpc:
            rpc.finish(Status.UNIMPLEMENTED, "there is no such method: this is Arrow Flight")
            return
        count = CallCount(_SNAKE[method.name])

        def has_come() -> None:
            # Neither a thread nor a place is for a client that has not said what it asks for: who
            # calls is known by then as little.
            if rpc.cancelled:
                rpc.follow(None)
                count.left()
            elif rpc.is_to_be_met or method.begins_at_once:
                rpc.follow(None)
                self._begin(rpc, method, count)

        rpc.follow(has_come)
        has_come()

    def _begin(self, rpc: Rpc, method: _Method, count: CallCount) -> None:
        """A call that has something to go by: give it a place, and who works for it."""
        trace_id = trace_id_of(rpc.headers)
        try:
            place = self._calls.enter(rpc, finishes=method.finishes)
        except DuckMeshError as error:
            self._refuse(rpc, method, count, trace_id, error)
            return
        run = partial(self._on_a_thread, rpc, method, place, count, trace_id)
        if method.name == "DoPut":
            self._appends.follow(Arrival(rpc, place, count, trace_id, run))
        else:
            run()

    def _on_a_thread(
        self, rpc: Rpc, method: _Method, place: Place, count: CallCount, trace_id: str
    ) -> None:
        try:
            self._threads.run(partial(self._run, rpc, method, place, count, trace_id))
        except RuntimeError:
            # The system gives no more threads.
            place.leave()
            self._refuse(rpc, method, count, trace_id, out_of_threads())

    def _refuse(
        self, rpc: Rpc, method: _Method, count: CallCount, trace_id: str, error: DuckMeshError
    ) -> None:
        count.refused(error)
        _log.info("call_refused", rpc=method.name, error_code=error.code.value, trace_id=trace_id)
        end_with(rpc, failed(error, trace_id))

    def _run(
        self, rpc: Rpc, method: _Method, place: Place, count: CallCount, trace_id: str
    ) -> None:
        """One call, from its credential to its status."""
        try:
            call = self._authentication.admit(
                rpc, trace_id, place, count, tells_at_once=method.tells_at_once
            )
        except DuckMeshError as error:
            place.leave()
            self._refuse(rpc, method, count, trace_id, error)
            return
        except Exception:  # noqa: BLE001 - logged, and mapped to INTERNAL
            place.leave()
            _log.exception("call_failed", rpc=method.name, trace_id=trace_id)
            self._refuse(rpc, method, count, trace_id, Internal())
            return
        rpc.let_in(method.message_max_bytes)
        ended: Failed | None = None
        try:
            place.on_cancel(call.stop.interrupt)
            with _guarded(_SNAKE[method.name], call):
                method.run(call)
        except Failed as failure:
            ended = failure
        finally:
            count.ended(failed=ended is not None)
            place.leave()
            # Last: whoever has the answer finds the place free.
            if ended is None:
                rpc.finish()
            else:
                end_with(rpc, ended, among_rows=method.name == "DoGet" and rpc.head_sent)


_SNAKE: Final = {
    "Handshake": "handshake",
    "ListFlights": "list_flights",
    "GetFlightInfo": "get_flight_info",
    "PollFlightInfo": "poll_flight_info",
    "GetSchema": "get_schema",
    "DoGet": "do_get",
    "DoPut": "do_put",
    "DoExchange": "do_exchange",
    "DoAction": "do_action",
    "ListActions": "list_actions",
}
"""The RPCs as logs and metrics name them."""


def _guarded(rpc: str, call: Call) -> boundary:
    return boundary(
        rpc,
        context=call.rpc,
        trace_id=call.trace_id,
        tenant=call.identity.tenant,
        tenant_id=call.identity.tenant_id,
        traceparent=call.traceparent,
        failing=call.count.failing,
    )
