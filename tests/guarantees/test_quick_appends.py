"""Streams of small batches over the real gateway: what is taken on the thread that moves bytes, and
what is handed over to another, answers as one stream would.
"""

import gc
import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pyarrow as pa
import pytest
from pyarrow import flight

from duckmesh import metrics
from duckmesh.quotas import Quotas
from gateway import known_quotas, limits, tenancy
from gateway.identity import EVERY_ROLE
from gateway.tenant_quotas import set_quotas
from tests.bus_worlds import PATIENCE_SECONDS, until
from tests.flight_server.test_whole_service import CALL_HEADER, Service, ask, connect
from tests.guarantees.test_read_your_writes import RawSession
from tests.guarantees.test_transactions import begin

STRICT = pa.schema([pa.field("id", pa.int64(), nullable=False), ("name", pa.utf8())])
LOOSE = pa.schema([("id", pa.int64()), ("name", pa.utf8())])
ANSWERED = (flight.FlightError, pa.ArrowException, KeyError, NotImplementedError)


@pytest.fixture
def service(database_dsn, tmp_path):
    opened = Service(database_dsn, tmp_path)
    with opened.ends, opened.coordinating():
        yield opened


@pytest.fixture
def uri(service, monkeypatch):
    """A door with a table `t` that it knows.

    A stream goes to a thread when its first batch finds that something is to be looked up: here
    the backlog and the quotas are not, which parts of a second would age.
    """
    monkeypatch.setattr(limits, "_LOOK_AGAIN_SECONDS", 60.0)
    monkeypatch.setattr(known_quotas, "_KEPT_SECONDS", 60.0)
    opened = service.open_door()
    with connect(opened) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("t", row(0).slice(0, 0), mode="create")
    with flight.connect(opened) as client:
        Stream(client).finish()
        send_one(client, -1)
    return opened


@pytest.fixture
def quickly(service, uri):
    """The answers that the thread which moves bytes gave to each batch, as they come."""
    appends = service.opened[-1][0]._appends
    submit, taken = appends.submit, []

    def counted(*arguments):
        answer = submit(*arguments)
        if answer is not None:
            parts = arguments[3]
            taken.extend([answer] * len(parts))
        return answer

    appends.submit = counted
    return taken


@pytest.fixture
def client(uri):
    with flight.connect(uri) as opened:
        yield opened


@pytest.fixture
def connection(uri):
    with connect(uri) as opened:
        yield opened


class Stream:
    """A DoPut by path, as a plain client has it."""

    def __init__(self, client, table="t", schema=STRICT, *, secret=None, **headers):
        sent = [(f"x-duckmesh-{k.replace('_', '-')}".encode(), v) for k, v in headers.items()]
        if secret is not None:
            sent.append((b"authorization", f"Bearer {secret}".encode()))
        options = flight.FlightCallOptions(headers=sent, timeout=40)
        target = flight.FlightDescriptor.for_path(table)
        self.schema = schema
        self.writer, self.reader = client.do_put(target, schema, options)

    def send(self, batch, key=None):
        if key is None:
            self.writer.write_batch(batch)
        else:
            metadata = json.dumps({"idempotency_key": key}).encode()
            self.writer.write_with_metadata(batch, metadata)

    def receive(self):
        """The next answer; None when the stream has ended."""
        answer = self.reader.read()
        return None if answer is None else json.loads(answer.to_pybytes())

    def finish(self):
        """The answers that are left; raises what the stream ended with."""
        self.writer.done_writing()
        answers = []
        while (answer := self.receive()) is not None:
            answers.append(answer)
        self.writer.close()
        return answers

    def end_of(self):
        """What the stream ended with, as text."""
        with pytest.raises(ANSWERED) as raised:
            self.writer.close()
        return str(raised.value)


def row(number, name="x", *, schema=STRICT):
    return pa.record_batch([[number], [name]], schema=schema)


def send_one(client, number, **options):
    stream = Stream(client, **options)
    stream.send(row(number))
    (receipt,) = stream.finish()
    return receipt


def rows_of(connection, sql="SELECT id FROM t WHERE id >= 0 ORDER BY id", **options):
    return [values[0] for values in ask(connection, sql, consistency="strong", **options)]


def numbers_of(answers):
    return [answer["batch"] for answer in answers]


def test_pipelined_streams_of_eight_clients_lose_and_double_nothing(uri, connection, quickly):
    clients, each = 8, 100

    def run(number):
        with flight.connect(uri) as client:
            stream = Stream(client)
            for n in range(each):
                stream.send(row(number * each + n), key=f"{number}-{n}")
            return stream.finish()

    with ThreadPoolExecutor(clients) as threads:
        receipts = list(threads.map(run, range(clients)))
    for answers in receipts:
        assert numbers_of(answers) == list(range(each))
        tokens = [answer["visibility_token"] for answer in answers]
        assert tokens == sorted(tokens)
        assert not any(answer["duplicate"] for answer in answers)
    tokens = [answer["visibility_token"] for answers in receipts for answer in answers]
    assert len(set(tokens)) == clients * each
    found = ask(
        connection,
        "SELECT count(*), count(DISTINCT id), min(id), max(id) FROM t WHERE id >= 0",
        min_visibility_token=max(tokens),
    )
    assert found == [(clients * each, clients * each, 0, clients * each - 1)]
    assert len(quickly) > clients * each / 2
    again = run(3)
    assert [a["visibility_token"] for a in again] == [a["visibility_token"] for a in receipts[3]]
    assert all(answer["duplicate"] for answer in again)
    assert len(rows_of(connection)) == clients * each


@pytest.mark.parametrize("at", [0, 10])
def test_a_large_batch_among_small_ones_keeps_the_order(client, connection, quickly, at):
    stream = Stream(client)
    for number in range(21):
        stream.send(row(number, "y" * 200_000 if number == at else "x"))
    answers = stream.finish()
    assert numbers_of(answers) == list(range(21))
    tokens = [answer["visibility_token"] for answer in answers]
    assert tokens == list(range(tokens[0], tokens[0] + 21))
    assert rows_of(connection) == list(range(21))
    large = rows_of(connection, "SELECT id FROM t WHERE length(name) = 200000")
    assert large == [at]
    assert len(quickly) == at


def send_with_a_bad_one(client, *, at, pipelined):
    """A stream whose last batch, `at`, has a null where none may be; its answers, and its end."""
    stream = Stream(client, schema=LOOSE)
    answers = []
    for number in range(at + 1):
        stream.send(row(None if number == at else number, schema=LOOSE))
        if not pipelined and number < at:
            answers.append(stream.receive())
    while (answer := stream.receive()) is not None:
        answers.append(answer)
    return answers, stream.end_of()


@pytest.mark.parametrize("pipelined", [True, False])
@pytest.mark.parametrize("at", [0, 5])
def test_a_bad_batch_ends_the_stream_and_those_before_it_stand(
    client, connection, quickly, at, pipelined
):
    answers, end = send_with_a_bad_one(client, at=at, pipelined=pipelined)
    accepted = [answer for answer in answers if "error" not in answer]
    assert numbers_of(accepted) == list(range(at))
    assert "INVALID_PAYLOAD" in end
    assert rows_of(connection) == list(range(at))
    # None, when memory had just forgotten the table: then a thread took them all.
    assert len(quickly) in {0, at}


@pytest.mark.parametrize("at", [0, 5])
def test_what_follows_a_bad_batch_is_not_taken(client, connection, at):
    stream = Stream(client, schema=LOOSE)

    def send_all():
        # The end may come while the client still sends: then it is the sending that raises it,
        # and this client reads no more answers.
        for number in range(8):
            stream.send(row(None if number == at else number, schema=LOOSE))
        stream.finish()

    with pytest.raises(ANSWERED, match="INVALID_PAYLOAD"):
        send_all()
    assert rows_of(connection) == list(range(at))


@pytest.mark.parametrize("pipelined", [True, False])
@pytest.mark.parametrize("at", [0, 5])
def test_a_bad_batch_is_answered_under_its_number(client, at, pipelined):
    answers, _ = send_with_a_bad_one(client, at=at, pipelined=pipelined)
    assert numbers_of(answers) == list(range(at + 1))
    assert answers[at]["error"]["error_code"] == "INVALID_PAYLOAD"


def counted(code):
    """Writes that ended so in this process."""
    return metrics.REGISTRY.get_sample_value("duckmesh_ingest_requests_total", {"code": code}) or 0


@pytest.mark.parametrize("at", [0, 2])
def test_a_bad_batch_is_counted_once(client, at):
    before = counted(metrics.OK), counted("INVALID_PAYLOAD")
    send_with_a_bad_one(client, at=at, pipelined=False)
    assert (counted(metrics.OK), counted("INVALID_PAYLOAD")) == (before[0] + at, before[1] + 1)


def test_a_batch_whose_key_has_other_rows_is_counted_once(client):
    send_one(client, 1, idempotency_key=b"run")
    before = counted(metrics.OK), counted("IDEMPOTENCY_CONFLICT")
    stream = Stream(client, idempotency_key=b"run")
    stream.send(row(2))
    assert stream.receive()["error"]["error_code"] == "IDEMPOTENCY_CONFLICT"
    assert (counted(metrics.OK), counted("IDEMPOTENCY_CONFLICT")) == (before[0], before[1] + 1)


def test_a_key_with_other_rows_is_answered_under_its_number(client, connection):
    stream = Stream(client)
    for number in range(3):
        stream.send(row(number), key=f"k{number}")
    assert numbers_of(stream.receive() for _ in range(3)) == [0, 1, 2]
    stream.send(row(100), key="k1")
    answer = stream.receive()
    assert answer["batch"] == 3
    assert answer["error"]["error_code"] == "IDEMPOTENCY_CONFLICT"
    assert "IDEMPOTENCY_CONFLICT" in stream.end_of()
    assert rows_of(connection) == [0, 1, 2]


def test_a_first_batch_with_a_seen_key_and_other_rows_is_refused(client, connection):
    assert send_one(client, 1, idempotency_key=b"run")["batch"] == 0
    assert send_one(client, 1, idempotency_key=b"run")["duplicate"]
    stream = Stream(client, idempotency_key=b"run")
    stream.send(row(2))
    answer = stream.receive()
    assert (answer["batch"], answer["error"]["error_code"]) == (0, "IDEMPOTENCY_CONFLICT")
    assert "IDEMPOTENCY_CONFLICT" in stream.end_of()
    assert rows_of(connection) == [1]


def test_columns_of_a_dictionary_are_taken_with_each_of_their_dictionaries(client, connection):
    schema = pa.schema([("id", pa.int64()), ("name", pa.dictionary(pa.int32(), pa.utf8()))])
    stream = Stream(client, schema=schema)
    for number in range(10):
        names = pa.array([f"n{number}", "x"]).dictionary_encode()
        ids = pa.array([2 * number, 2 * number + 1])
        stream.send(pa.record_batch([ids, names], schema=schema))
    assert numbers_of(stream.finish()) == list(range(10))
    found = rows_of(connection, "SELECT name FROM t WHERE id >= 0 ORDER BY id")
    assert found == [name for number in range(10) for name in (f"n{number}", "x")]


def test_messages_of_metadata_alone_are_no_batches(client, connection, quickly):
    stream = Stream(client)
    stream.writer.write_metadata(b"{}")
    for number in range(5):
        stream.send(row(number), key=f"k{number}")
        stream.writer.write_metadata(b'{"idempotency_key": "nothing"}')
    answers = stream.finish()
    assert numbers_of(answers) == list(range(5))
    assert not any(answer["duplicate"] for answer in answers)
    assert rows_of(connection) == list(range(5))
    assert len(quickly) == 5


def test_metadata_that_is_no_object_ends_the_stream_and_what_came_before_stands(client, connection):
    stream = Stream(client)
    stream.send(row(0))
    assert stream.receive()["batch"] == 0
    stream.writer.write_metadata(b"[]")
    answer = stream.receive()
    assert answer is None or answer["error"]["error_code"] == "INVALID_JSON"
    assert "INVALID_JSON" in stream.end_of()
    assert rows_of(connection) == [0]


@pytest.mark.parametrize("sent_before", [0, 3])
@pytest.mark.parametrize(
    "others",
    [
        pa.table({"x": [1.5]}),
        pa.table({"id": ["a"], "name": ["b"]}),
        pa.table({"name": ["b"], "id": pa.array([7], pa.int64())}),
    ],
    ids=["other columns", "other types", "another order"],
)
def test_a_table_replaced_under_an_open_stream_gets_right_rows_or_none(
    client, connection, others, sent_before
):
    stream = Stream(client)
    for number in range(sent_before):
        stream.send(row(number))
        assert stream.receive()["batch"] == number
    with connection.cursor() as cursor:
        cursor.adbc_ingest("t", others, mode="replace")
    accepted, answer = [], None
    for number in range(100, 120):
        stream.send(row(number, "late"))
        answer = stream.receive()
        if answer is None or "error" in answer:
            break
        accepted.append((number, "late"))
    if answer is None or "error" in answer:
        assert "SCHEMA_INCOMPATIBLE" in stream.end_of()
    else:
        stream.finish()
    strong = {f"{CALL_HEADER}consistency": "strong"}
    with connection.cursor(adbc_stmt_kwargs=strong) as cursor:
        cursor.execute("SELECT * FROM t")
        table = cursor.fetch_arrow_table()
    assert table.column_names == others.column_names
    if "x" in table.column_names or table.schema.field("id").type != pa.int64():
        assert accepted == []
        assert table.to_pylist() == others.to_pylist()
    else:
        late = [{"name": name, "id": number} for number, name in accepted]
        key = repr
        assert sorted(table.to_pylist(), key=key) == sorted(others.to_pylist() + late, key=key)


def test_a_revoked_key_ends_its_stream_within_two_seconds(service):
    uri = service.open_door(open_tenant=None)
    tenancy.ensure_tenant(service.catalog, "acme", principal="test")
    key_id, secret = tenancy.create_key(
        service.catalog, "acme", name="test", roles=[role.value for role in EVERY_ROLE]
    )
    with connect(uri, secret) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("t", row(0).slice(0, 0), mode="create")
    with flight.connect(uri) as client:
        stream = Stream(client, secret=secret)
        for number in range(3):
            stream.send(row(number))
            assert stream.receive()["batch"] == number
        tenancy.revoke_key(service.catalog, "acme", key_id)
        revoked_at = time.monotonic()
        answer = {}
        while answer is not None and "error" not in answer:
            assert time.monotonic() < revoked_at + 2
            try:
                stream.send(row(1000))
            except ANSWERED:
                break
            answer = stream.receive()
        assert "UNAUTHORIZED" in stream.end_of()


def test_a_tenant_with_a_rate_is_slowed_and_not_refused(service, uri, connection):
    set_quotas(service.catalog, "default", Quotas(ingest_rows_per_second=10))
    slowed = service.open_door()
    begun_at = time.monotonic()
    with flight.connect(slowed) as client:
        stream = Stream(client)
        for number in range(25):
            stream.send(row(number))
        answers = stream.finish()
    assert time.monotonic() - begun_at > 1.0
    assert numbers_of(answers) == list(range(25))
    assert rows_of(connection) == list(range(25))


def test_a_stream_that_waits_is_answered_with_snapshots_that_show_its_rows(client, connection):
    stream = Stream(client, wait=b"true")
    for number in range(3):
        stream.send(row(number))
        answer = stream.receive()
        assert answer["batch"] == number
        at = {"snapshot_id": answer["visible_snapshot_id"]}
        assert ask(connection, "SELECT max(id) FROM t", **at) == [(number,)]
    assert stream.finish() == []


def test_a_stream_in_a_session_with_an_open_transaction_is_refused(uri, connection, quickly):
    session = RawSession([uri])
    assert send_one(session.clients[0], 1)["batch"] == 0
    begin(session.clients[0])
    stream = Stream(session.clients[0])
    assert stream.receive() is None
    assert "batch by batch" in stream.end_of()
    session.close()
    assert rows_of(connection) == [1]
    assert quickly == []


CLIENT = """
    import json, sys, threading
    import pyarrow as pa
    from pyarrow import flight

    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), ("name", pa.utf8())])
    client = flight.connect(sys.argv[1])
    first = pa.record_batch([[0], ["x"]], schema=schema)
    print("ready", flush=True)
    sys.stdin.readline()
    writer, reader = client.do_put(flight.FlightDescriptor.for_path("t"), schema)

    def read():
        while (answer := reader.read()) is not None:
            print(json.loads(answer.to_pybytes())["batch"], flush=True)

    threading.Thread(target=read, daemon=True).start()
    for number in range(10**9):
        key = json.dumps({"idempotency_key": f"k{number}"}).encode()
        writer.write_with_metadata(pa.record_batch([[number], ["x"]], schema=schema), key)
"""


def test_what_a_killed_client_has_receipts_for_is_there_once(
    service, uri, client, connection, quickly
):
    command = [sys.executable, "-c", textwrap.dedent(CLIENT), uri]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        # The door knows the table anew.
        send_one(client, -2)
        process.stdin.write("go\n")
        process.stdin.flush()
        acknowledged = [int(process.stdout.readline()) for _ in range(200)]
        process.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    until(lambda: service.opened[-1][0].calls_in_flight == 0)
    assert acknowledged == list(range(len(acknowledged)))
    found = Counter(rows_of(connection))
    assert set(found.values()) == {1}
    # In order, and without a hole; some came whose receipt was under way.
    assert sorted(found) == list(range(len(found)))
    assert len(found) >= len(acknowledged)
    assert len(quickly) > len(acknowledged) / 2


@pytest.mark.parametrize("sent_before", [0, 1, 5])
def test_a_drain_tells_an_idle_stream_that_the_server_ends(service, client, sent_before):
    door = service.opened[-1][0]
    stream = Stream(client)
    for number in range(sent_before):
        stream.send(row(number))
        assert stream.receive()["batch"] == number
    until(lambda: door.calls_in_flight == 1)
    with ThreadPoolExecutor(1) as threads:
        drained = threads.submit(door.drain, timedelta(seconds=1))
        while (answer := stream.receive()) is not None:
            assert answer["error"]["error_code"] == "NOT_READY"
            assert answer["batch"] == sent_before
        assert "NOT_READY" in stream.end_of()
        assert drained.result(PATIENCE_SECONDS)


def test_a_stream_to_no_table_is_refused_before_a_batch_is_sent(client):
    stream = Stream(client, table="missing")
    assert stream.receive() is None
    assert "TABLE_NOT_FOUND" in stream.end_of()


def test_a_stream_whose_columns_do_not_fit_is_refused_before_a_batch_is_sent(client):
    stream = Stream(client, schema=pa.schema([("id", pa.utf8()), ("name", pa.utf8())]))
    assert stream.receive() is None
    assert "SCHEMA_INCOMPATIBLE" in stream.end_of()


def test_many_streams_that_lie_idle_hold_no_thread(uri, connection, quickly):
    with flight.connect(uri) as client:
        streams = [Stream(client) for _ in range(50)]
        for number, stream in enumerate(streams):
            stream.send(row(number))
            assert stream.receive()["batch"] == 0
        assert len(quickly) == 50
        serving = [each for each in threading.enumerate() if each.name.startswith("flight")]
        assert len(serving) < 20
        for number, stream in enumerate(streams):
            stream.send(row(100 + number))
        assert [numbers_of(stream.finish()) for stream in streams] == [[1]] * 50
    assert len(rows_of(connection)) == 100


def test_writes_that_have_ended_are_no_work_for_the_collector(client, quickly):
    """A ring of references in each cost three per cent of a write, in pauses of all threads."""
    for number in range(5):
        send_one(client, number)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for number in range(100):
            send_one(client, number)
        gc.collect()
        rooms = ("flight_server", "gateway", "grpc_transport", "ingest_bus")
        found = Counter(
            type(each).__qualname__
            for each in gc.garbage
            if type(each).__module__.startswith(rooms)
        )
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert len(quickly) == 105
    # A few are of doors that have closed.
    assert [kind for kind, count in found.items() if count > 20] == []
