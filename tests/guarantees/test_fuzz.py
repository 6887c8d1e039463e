"""Malformed input of every kind: each answer is typed, the server lives, and holds nothing after.

FUZZ_CASES says how many cases run (10,000 before a release), FUZZ_SEED which.
"""

import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import flight

from duckmesh.errors import ErrorCode
from flight_server import messages
from object_store.file_cache import FETCH_THREADS
from tests import wire
from tests.processes import PlainClient, ProductProcess, Service, service, until

CASES = int(os.environ.get("FUZZ_CASES", "700"))
SEED = int(os.environ.get("FUZZ_SEED", "20261121"))

TYPED = re.compile(r"\[([A-Z_]+)\] ")
INSIDE = re.compile(
    r"Traceback|File \"|\.py\b|/(home|tmp|work|usr|etc)/|postgres(ql)?://|127\.0\.0"
)
OWN_STATUSES = {"UNIMPLEMENTED", "INTERNAL", "INVALID_ARGUMENT", "UNKNOWN", "UNAUTHENTICATED"}
"""What gRPC and Arrow answer by themselves to bytes that are no message of Flight."""

GROWTH_MAX_BYTES = 300 * 2**20
ROWS = pa.table(
    {"id": pa.array(range(50), pa.int64()), "name": ["ünï"] * 50, "l": [[1, None]] * 50}
)


def wrapped(name: str, **fields: object) -> bytes:
    return messages.wrap(messages.sql(name)(**fields))


@dataclass
class Case:
    rpc: str
    requests: list[bytes]
    headers: list[tuple[str, str | bytes]] = field(default_factory=list)
    outer: bool = False
    """Whether the message of Flight itself is malformed, and not only what it carries."""


class Mutator:
    """Damages bytes in the ways that programs and wires do. One seed, one sequence."""

    def __init__(self, seed: int) -> None:
        self.drawn = random.Random(seed)  # noqa: S311 - a reproducible fuzz, no secret

    def damage(self, data: bytes) -> bytes:
        out = bytearray(data)
        for _ in range(self.drawn.randint(1, 4)):
            self.drawn.choice(
                [self._flip, self._cut, self._insert, self._repeat, self._truncate, self._extreme]
            )(out)
        return bytes(out)

    def text(self, value: str) -> str:
        """Damaged text that a header may carry."""
        damaged = self.damage(value.encode()).decode("latin-1")
        return "".join(c if " " <= c <= "~" else "?" for c in damaged)[:4000].strip()

    def _at(self, out: bytearray) -> int:
        return self.drawn.randrange(len(out)) if out else 0

    def _flip(self, out: bytearray) -> None:
        if out:
            out[self._at(out)] ^= 1 << self.drawn.randrange(8)

    def _cut(self, out: bytearray) -> None:
        at = self._at(out)
        del out[at : at + self.drawn.randint(1, 9)]

    def _insert(self, out: bytearray) -> None:
        at = self._at(out)
        out[at:at] = self.drawn.randbytes(self.drawn.randint(1, 9))

    def _repeat(self, out: bytearray) -> None:
        at = self._at(out)
        out[at:at] = out[at : at + 16] * self.drawn.randint(1, 30)

    def _truncate(self, out: bytearray) -> None:
        del out[self._at(out) :]

    def _extreme(self, out: bytearray) -> None:
        at = self._at(out)
        out[at : at + 4] = self.drawn.choice([b"\xff" * 4, b"\x00" * 4, b"\xff\xff\xff\x7f"])


class Corpus:
    """Real commands, tickets, handles, tokens and streams, and cases made of them."""

    def __init__(self, uri: str, seed: int) -> None:
        self._mutator = Mutator(seed)
        self._drawn = self._mutator.drawn
        with flight.connect(uri) as client:
            self._collect(client)
        self._makers: list[Callable[[], Case]] = [
            self._command,
            self._command,
            self._ticket,
            self._ticket,
            self._action,
            self._put,
            self._put,
            self._headers,
            self._any_rpc,
        ]

    def _collect(self, client: flight.FlightClient) -> None:
        query = wrapped("CommandStatementQuery", query="SELECT * FROM t WHERE id > 7")
        info = client.get_flight_info(flight.FlightDescriptor.for_command(query))
        self._info = info
        create = wrapped("ActionCreatePreparedStatementRequest", query="SELECT ? + 1")
        (prepared,) = client.do_action(flight.Action("CreatePreparedStatement", create))
        _, body = messages.any_of(prepared.body.to_pybytes())
        handle = messages.sql("ActionCreatePreparedStatementResult").FromString(body)
        self._handle = handle.prepared_statement_handle
        _, body = messages.any_of(info.endpoints[0].ticket.ticket)
        self._sealed = messages.sql("TicketStatementQuery").FromString(body).statement_handle
        self._session = _session_token(client)
        self._commands = [
            query,
            wrapped("CommandGetTables", table_name_filter_pattern="%", include_schema=True),
            wrapped("CommandGetSqlInfo", info=[1, 8, 500]),
            wrapped("CommandGetDbSchemas", db_schema_filter_pattern="ma%"),
            wrapped("CommandGetPrimaryKeys", table="t"),
            wrapped("CommandGetXdbcTypeInfo", data_type=4),
            wrapped("CommandPreparedStatementQuery", prepared_statement_handle=self._handle),
            wrapped("CommandStatementUpdate", query="DROP TABLE IF EXISTS nothing"),
        ]

    def case(self) -> Case:
        return self._drawn.choice(self._makers)()

    # ---- Kinds of cases

    def _command(self) -> Case:
        return Case(
            self._drawn.choice(["GetFlightInfo", "GetSchema"]),
            [wire.command_descriptor(self._inner(self._drawn.choice(self._commands)))],
        )

    def _ticket(self) -> Case:
        if self._drawn.random() < 0.4:
            handle = self._mutator.damage(self._sealed)
            return Case(
                "DoGet", [wire.ticket(wrapped("TicketStatementQuery", statement_handle=handle))]
            )
        known = [*self._commands, self._info.endpoints[0].ticket.ticket]
        return Case("DoGet", [wire.ticket(self._inner(self._drawn.choice(known)))])

    def _action(self) -> Case:
        session = messages.session
        kind, body = self._drawn.choice(
            [
                ("CreatePreparedStatement", self._commands[0]),
                (
                    "ClosePreparedStatement",
                    wrapped(
                        "ActionClosePreparedStatementRequest",
                        prepared_statement_handle=self._handle,
                    ),
                ),
                ("BeginTransaction", wrapped("ActionBeginTransactionRequest")),
                ("EndTransaction", wrapped("ActionEndTransactionRequest", transaction_id=b"x")),
                (
                    "CancelFlightInfo",
                    session("CancelFlightInfoRequest")(
                        info=self._mutator.damage(self._info.serialize())
                    ).SerializeToString(),
                ),
                (
                    "RenewFlightEndpoint",
                    session("RenewFlightEndpointRequest")(
                        endpoint=self._mutator.damage(self._info.endpoints[0].serialize())
                    ).SerializeToString(),
                ),
                ("GetSessionOptions", b""),
                ("SetSessionOptions", b"\x0a\x0d\x0a\x07catalog\x12\x02\x0a\x00"),
            ]
        )
        name = kind.encode() if self._drawn.random() < 0.9 else self._mutator.damage(kind.encode())
        return Case("DoAction", [wire.action(name, self._inner(body))], outer=not _is_text(name))

    def _put(self) -> Case:
        target = self._drawn.choice(
            [
                wire.path_descriptor(b"t"),
                wire.command_descriptor(self._inner(_ingest())),
                wire.command_descriptor(_ingest()),
                wire.command_descriptor(
                    wrapped("CommandPreparedStatementQuery", prepared_statement_handle=self._handle)
                ),
            ]
        )
        schema, *batches = wire.ipc_messages(ROWS)
        where = self._drawn.randrange(3)
        if where == 0:
            schema = schema[:8] + self._mutator.damage(schema[8:])
        elif where == 1:
            batches = [each[:8] + self._mutator.damage(each[8:]) for each in batches]
        sent = [wire.flight_data(schema, descriptor=target)]
        metadata = None if where < 2 else self._mutator.damage(b'{"idempotency_key": "fuzz"}')
        sent += [wire.flight_data(each, metadata=metadata) for each in batches]
        if self._drawn.random() < 0.2:
            self._drawn.shuffle(sent)
        return Case("DoPut", sent, outer=True)

    def _headers(self) -> Case:
        name, value = self._drawn.choice(
            [
                ("authorization", f"Bearer {self._session}"),
                ("authorization", "Basic dXNlcjpwYXNz"),
                ("x-duckmesh-min-visibility-token", "1"),
                ("x-duckmesh-snapshot-id", "1"),
                ("x-duckmesh-snapshot-time", "2026-01-31T12:00:00Z"),
                ("x-duckmesh-consistency", "strong"),
                ("x-duckmesh-consistency-timeout-ms", "10"),
                ("x-duckmesh-idempotency-key", "k"),
                ("x-duckmesh-wait", "true"),
                ("x-trace-id", "4bf92f3577b34da6a3ce929d0e0e4736"),
                ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
                ("cookie", f"arrow_flight_session_id={self._session}"),
            ]
        )
        headers: list[tuple[str, str | bytes]] = [(name, self._mutator.text(value))]
        if self._drawn.random() < 0.2:
            headers.append((f"{name}-bin", self._drawn.randbytes(40)))
        return Case("GetFlightInfo", [wire.command_descriptor(self._commands[0])], headers=headers)

    def _any_rpc(self) -> Case:
        rpcs = (*wire.UNARY, *wire.ANSWERED_BY_A_STREAM, *wire.STREAMS)
        request = self._mutator.damage(wire.command_descriptor(self._drawn.choice(self._commands)))
        return Case(self._drawn.choice(rpcs), [request], outer=True)

    def _inner(self, data: bytes) -> bytes:
        """Damaged bytes, or a well-formed Any around a damaged message."""
        if not data or self._drawn.random() < 0.5:
            return self._mutator.damage(data)
        try:
            url, value = messages.any_of(data)
        except messages.DecodeError:
            return self._mutator.damage(data)
        return wire.field(1, url.encode()) + wire.field(2, self._mutator.damage(value))


def _ingest() -> bytes:
    options = {"if_not_exist": 2, "if_exists": 2}
    return wrapped("CommandStatementIngest", table="t", table_definition_options=options)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _session_token(client: flight.FlightClient) -> str:
    (name, value) = client.authenticate_basic_token("anyone", "")
    assert name == b"authorization"
    return str(value.decode().removeprefix("Bearer "))


@dataclass
class Server:
    process: ProductProcess
    uri: str

    def figure(self, name: str) -> int:
        """A number of the kernel's about the process, such as VmRSS (bytes) or Threads."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        words = re.search(rf"^{name}:\s+(\d+)( kB)?", status, re.MULTILINE)
        assert words is not None
        return int(words[1]) * (1024 if words[2] else 1)

    @property
    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@pytest.fixture
def running(database_dsn: str, tmp_path: Path) -> Iterator[tuple[Service, Server]]:
    with service(database_dsn, tmp_path, DUCKMESH_LOGGING_LEVEL="error") as started:
        process, uri = started.serve()
        started.coordinate("c1")
        yield started, Server(process, uri)


def make_table(uri: str) -> None:
    with flight.connect(uri) as client:
        create = wrapped(
            "CommandStatementIngest",
            table="t",
            table_definition_options={"if_not_exist": 1, "if_exists": 2},
        )
        writer, _ = client.do_put(flight.FlightDescriptor.for_command(create), ROWS.schema)
        with writer:
            writer.write_table(ROWS)


def complaint(case: Case, reply: wire.Reply) -> str | None:
    """What is wrong with a reply; None when nothing is."""
    said = f"{reply.text} {reply.trailers.get('x-duckmesh-error', '')!r}"
    if INSIDE.search(said):
        return "it tells of the inside"
    if reply.status == "OK":
        return None
    code = TYPED.search(reply.text)
    if code is not None:
        if code[1] not in set(ErrorCode):
            return "its code is not of the contract"
        return "it is a fault of ours" if code[1] == ErrorCode.INTERNAL else None
    if reply.status == "DEADLINE_EXCEEDED":
        return "it hung"
    if reply.status in {"UNAVAILABLE", "CANCELLED"}:
        return "the connection broke"
    return None if case.outer and reply.status in OWN_STATUSES else "it is not typed"


def test_damaged_input_is_refused_by_name_and_leaves_nothing_behind(
    running: tuple[Service, Server],
) -> None:
    _, server = running
    make_table(server.uri)
    corpus = Corpus(server.uri, SEED)
    raw = wire.RawFlight(server.uri.removeprefix("grpc://"))
    before, seen = (0, 0, 0), Counter[str]()
    for number in range(CASES):
        if number == 100:
            before = (server.figure("VmRSS"), server.figure("Threads"), server.descriptors)
        case = corpus.case()
        reply = raw.call(case.rpc, case.requests, case.headers)
        wrong = complaint(case, reply)
        assert wrong is None, f"case {number} of seed {SEED}: {wrong}: {reply} to {case}"
        code = TYPED.search(reply.text)
        # What has no code of ours, Arrow or gRPC refused before the door was asked.
        seen[f"{case.rpc} {reply.status} {code[1] if code else reply.text[:60]}"] += 1
    raw.close()
    print(f"\n{CASES} cases:", *(f"{n:6} {what}" for what, n in seen.most_common()), sep="\n")
    assert server.process.process is not None
    assert server.process.process.poll() is None
    client = PlainClient(server.uri)
    receipt = client.put("t", ROWS.to_batches()[0])
    answer = client.query(
        "SELECT count(*) >= 100 AS there FROM t", token=receipt["visibility_token"]
    )
    assert answer["there"].to_pylist() == [True]
    client.close()
    memory, threads, descriptors = before
    # Whether the threads that fetch files had begun by the first count is a matter of when the
    # writes were published: they are so many and no more.
    until(lambda: server.figure("Threads") <= threads + 8 + FETCH_THREADS)
    until(lambda: server.descriptors <= descriptors + 8)
    assert server.figure("VmRSS") < memory + GROWTH_MAX_BYTES
