"""Workers: their deaths, their walls, their number, and that nothing of them stays behind."""

import contextlib
import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from duckmesh.errors import (
    Cancelled,
    DuckMeshError,
    ErrorCode,
    Exceeded,
    Invalid,
    Overloaded,
    Unavailable,
)
from query_engine.engine import Interruption, QueryEngine, WorkerSettings
from query_engine.question import Needs, Question
from query_engine.relations import Relation, RelationSet
from query_engine.remote import RemoteAnswers
from query_engine.stream import QueryLimits
from query_engine.watch import Guard
from query_engine.worker_pool import WorkerPool
from tests.query_engine.conftest import NUMBERS, Lake
from tests.query_engine.test_limits import until

EMPTY = RelationSet("acme", 1, (), ())
OTHER = RelationSet("other", 1, (), ())
DEAF = "SELECT len(lpad('x', 2147483000, 'y'))"
"""DuckDB does not heed an interrupt in it for many seconds."""

SLOW = "SELECT count(*) FROM range(5000000) a, range(100) b WHERE a.range * b.range = -1"
LONG = "SELECT range AS a, range * 2 AS b, range * 3 AS c FROM range(100000000)"


@contextmanager
def engine_of(folder: Path | None = None, **settings: object) -> Iterator[QueryEngine]:
    chosen = {"workers": 3, "kill_grace": timedelta(seconds=0.5)} | settings
    with QueryEngine(
        threads=2,
        memory_limit_bytes=256 * 2**20,
        temp_directory=folder,
        workers=WorkerSettings(**chosen),
    ) as engine:
        yield engine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[QueryEngine]:
    folder = tmp_path / "spill"
    folder.mkdir()
    with engine_of(folder) as engine:
        yield engine
    until(lambda: not list(folder.iterdir()))


def pool_of(engine: QueryEngine) -> WorkerPool:
    assert isinstance(engine._answers, RemoteAnswers)
    return engine._answers.pool


def one(engine: QueryEngine, sql: str, relations: RelationSet = EMPTY, **options: object) -> object:
    with engine.run(sql, relations, **options) as running:
        return running.reader.read_all()[0][0].as_py()


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def children() -> set[int]:
    found = set()
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "query_engine.worker" in " ".join(each.cmdline()):
                found.add(each.pid)
    return found - OTHERS


OTHERS: set[int] = set()
"""Workers of engines that other tests of this process hold."""


@pytest.fixture(autouse=True)
def others() -> None:
    OTHERS.clear()
    OTHERS.update(children())


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- the start


def test_a_first_query_waits_for_no_process_to_start(engine) -> None:
    assert engine.await_ready(timedelta(seconds=30))
    waiting = children()
    assert one(engine, "SELECT 0 + 1") == 1
    assert set(pool_of(engine).pids) <= waiting


def test_an_engine_whose_worker_is_not_there_yet_says_so() -> None:
    with engine_of() as engine:
        assert not engine.await_ready(timedelta(0))


# --- literals, which need no worker


def test_literals_are_answered_without_a_worker() -> None:
    with engine_of(workers=1) as engine:
        assert engine.await_ready(timedelta(seconds=30))
        with engine.run("SELECT range FROM range(100000000)", EMPTY) as held:
            assert next(held.batches).num_rows > 0
            leased = pool_of(engine).pids
            # The only worker is another tenant's: what is computed has to wait, this has not.
            assert one(engine, "SELECT 1 AS a, 'x' AS b", OTHER) == 1
            described = engine.describe("SELECT 1 AS a, 'x' AS b", OTHER).result_schema
            assert described.names == ["a", "b"]
            assert pool_of(engine).pids == leased
            less = QueryLimits(memory_bytes=64 * 2**20)
            assert one(engine, "SELECT 2", EMPTY, limits=less) == 2
            assert engine._literals.instances == 1


# --- small answers, which travel whole


def test_a_few_rows_and_then_an_error_are_an_error_and_cost_no_worker(engine) -> None:
    sql = "SELECT range AS n FROM range(3) UNION ALL SELECT CAST('x' || range AS INT) FROM range(9)"
    assert one(engine, "SELECT 0 + 1") == 1
    bound = pool_of(engine).pids
    with pytest.raises(Invalid) as failed, engine.run(sql, EMPTY) as running:
        running.reader.read_all()
    assert failed.value.code is ErrorCode.QUERY_EXECUTION_FAILED
    assert one(engine, "SELECT 1 + 1") == 2
    assert pool_of(engine).pids == bound


def test_a_few_rows_and_then_nothing_for_long_end_at_the_time_limit(engine) -> None:
    sql = f"SELECT 1 AS n UNION ALL ({SLOW.replace('5000000', '500000000')})"
    with pytest.raises(Exceeded) as late:
        engine.run(
            sql, EMPTY, limits=QueryLimits(wall_time=timedelta(seconds=0.5))
        ).reader.read_all()
    assert late.value.code is ErrorCode.QUERY_TIMEOUT


@pytest.mark.parametrize("rows", [0, 1, 4000, 70_000])
def test_answers_of_every_size_come_whole(engine, rows: int) -> None:
    with engine.run(f"SELECT range AS n FROM range({rows})", EMPTY) as running:
        answer = running.reader.read_all()
    assert answer.schema == pa.schema([("n", pa.int64())])
    assert sorted(answer["n"].to_pylist()) == list(range(rows))


# --- time


def test_a_query_that_does_not_heed_costs_itself_and_its_worker_alone(engine) -> None:
    limits = QueryLimits(wall_time=timedelta(seconds=0.3))
    started = time.monotonic()
    with pytest.raises(Exceeded) as late:
        engine.run(DEAF, EMPTY, limits=limits)
    assert late.value.code is ErrorCode.QUERY_TIMEOUT
    assert time.monotonic() - started < 10
    assert one(engine, "SELECT 0 + 1") == 1


def test_another_tenant_is_answered_while_one_is_deaf(engine) -> None:
    button = Interruption()
    ended: list[DuckMeshError] = []

    def ask() -> None:
        try:
            engine.run(DEAF, EMPTY, interruption=button)
        except DuckMeshError as error:
            ended.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: pool_of(engine).users == 1)
    for number in range(20):
        assert one(engine, f"SELECT {number}", OTHER) == number
    assert thread.is_alive()
    button.interrupt()
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(ended[0], Cancelled)


def test_a_binding_that_does_not_end_is_ended(engine) -> None:
    """The planner heeds neither an interrupt nor DuckDB's own time limit."""
    bomb = "WITH c0 AS (SELECT 1 AS x)" + "".join(
        f", c{n} AS NOT MATERIALIZED (SELECT a.x FROM c{n - 1} a JOIN c{n - 1} b ON a.x = b.x)"
        for n in range(1, 26)
    )
    limits = QueryLimits(wall_time=timedelta(seconds=0.5))
    for ask in (engine.describe, engine.run):
        with pytest.raises(Exceeded) as ended:
            ask(bomb + " SELECT count(*) FROM c25", EMPTY, limits=limits)
        assert ended.value.code in (ErrorCode.QUERY_TIMEOUT, ErrorCode.QUERY_MEMORY)
    assert one(engine, "SELECT 0 + 1") == 1


def test_a_worker_that_stands_still_is_killed_at_the_time_limit(engine) -> None:
    assert one(engine, "SELECT 0 + 1") == 1
    (pid,) = pool_of(engine).pids
    os.kill(pid, signal.SIGSTOP)
    limits = QueryLimits(wall_time=timedelta(seconds=0.3))
    with pytest.raises(Exceeded) as late:
        engine.run("SELECT 1 + 1", EMPTY, limits=limits)
    assert late.value.code is ErrorCode.QUERY_TIMEOUT
    until(lambda: not alive(pid))
    assert one(engine, "SELECT 1 + 1") == 2


# --- memory


@pytest.mark.parametrize(
    "sql",
    ["SELECT len(repeat('x', 2000000000))", "SELECT len(range(2000000000))"],
)
def test_memory_beyond_the_limit_is_refused_and_given_back(engine, sql: str) -> None:
    ours = psutil.Process()
    assert one(engine, "SELECT 0 + 1") == 1
    before = ours.memory_info().rss
    with pytest.raises(Exceeded) as large:
        engine.run(sql, EMPTY)
    assert large.value.code is ErrorCode.QUERY_MEMORY
    assert large.value.context["limit_bytes"] == 256 * 2**20
    assert ours.memory_info().rss - before < 50 * 2**20
    assert one(engine, "SELECT 0 + 1") == 1


# --- death


def test_a_query_whose_worker_died_before_any_row_is_asked_again(engine) -> None:
    """So its neighbours pay for a query that kills its worker with time alone."""
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(one, engine, SLOW)
        until(lambda: pool_of(engine).users == 1)
        (pid,) = pool_of(engine).pids
        os.kill(pid, signal.SIGKILL)
        assert answer.result(60) == 0
    assert not alive(pid)


def test_the_channel_of_a_worker_that_died_meanwhile_is_closed(engine) -> None:
    assert engine.await_ready(timedelta(seconds=30))
    pool = pool_of(engine)
    needs = Needs((), (), (), (), None)
    question = Question(tenant="acme", directories=(), sql="SELECT 0 + 1", places=(), needs=needs)
    lease = pool.lease(question, Guard(None), alone=False)
    lease.kill()
    until(lambda: lease.pid not in pool.pids)
    lease.end(reuse=True)
    assert lease.channel.socket.fileno() == -1


def test_a_query_that_loses_each_worker_is_a_retryable_error(engine) -> None:
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(one, engine, SLOW)
        killed: set[int] = set()

        def kill() -> bool:
            for pid in pool_of(engine).pids:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
            return answer.done()

        until(kill, 60)
        with pytest.raises(Unavailable) as lost:
            answer.result()
    assert lost.value.code is ErrorCode.QUERY_WORKER_LOST
    assert lost.value.retryable
    assert len(killed) >= 3
    assert one(engine, "SELECT 0 + 1") == 1


def test_a_stream_whose_worker_dies_midway_does_not_pass_for_a_whole_one(engine) -> None:
    running = engine.run(LONG, EMPTY)
    assert running.reader.read_next_batch().num_rows > 0
    (pid,) = pool_of(engine).pids
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(Unavailable) as lost:
        for _ in running.reader:
            pass
    assert lost.value.code is ErrorCode.QUERY_WORKER_LOST
    assert lost.value.retryable
    until(lambda: pool_of(engine).users == 0)


def test_under_random_kills_every_answer_is_right_or_a_retryable_error(
    lake: Lake, tmp_path: Path
) -> None:
    rows = 50_000
    path = lake.write(NUMBERS, {"a": list(range(rows)), "b": ["x" * 20] * rows})
    relations = lake.snapshot(Relation("t", NUMBERS, (path,)))
    folder = tmp_path / "spill"
    folder.mkdir()
    gc.collect()
    fds = descriptors()
    chosen = random.Random(7)  # noqa: S311 - repeatable
    stop = threading.Event()
    answers: list[int] = []
    failures: list[BaseException] = []

    def ask(seed: int) -> None:
        while not stop.is_set():
            try:
                if seed % 2:
                    answers.append(one(engine, "SELECT sum(a) FROM t", relations))
                else:
                    with engine.run("SELECT a FROM t", relations) as running:
                        answers.append(sum(pa.compute.sum(b["a"]).as_py() for b in running.reader))
            except DuckMeshError as error:
                failures.append(error)

    with engine_of(folder) as engine:
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        kills = 0
        deadline = time.monotonic() + 40
        while kills < 12 and time.monotonic() < deadline:
            seen = len(answers)
            until(lambda seen=seen: len(answers) > seen + 1)
            victims = [*pool_of(engine).pids]
            os.kill(chosen.choice(victims), signal.SIGKILL) if victims else None
            kills += bool(victims)
        stop.set()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "a query hangs"
    assert kills == 12
    assert set(answers) == {rows * (rows - 1) // 2}
    assert {(type(each), each.code) for each in failures} <= {
        (Unavailable, ErrorCode.QUERY_WORKER_LOST)
    }
    until(lambda: not children() & set(psutil.pids()))
    assert list(folder.iterdir()) == []
    gc.collect()
    assert descriptors() <= fds + 2


def test_the_death_of_the_serving_process_ends_its_workers(tmp_path: Path) -> None:
    script = (
        "import sys, json\n"
        "from query_engine.engine import QueryEngine, WorkerSettings\n"
        "from query_engine.relations import RelationSet\n"
        "from tests.query_engine.test_workers import pool_of\n"
        "e = QueryEngine(threads=1, memory_limit_bytes=2**28, temp_directory=None,\n"
        "                workers=WorkerSettings(workers=2))\n"
        "r = e.run('SELECT range FROM range(1000000000)', RelationSet('acme', 1, (), ()))\n"
        "r.reader.read_next_batch()\n"
        "print(json.dumps(pool_of(e).pids), flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(os.environ, TMPDIR=str(tmp_path)),
    ) as process:
        assert process.stdout is not None
        try:
            workers = json.loads(process.stdout.readline())
            everyone = [each.pid for each in psutil.Process(process.pid).children(recursive=True)]
            assert set(workers) <= set(everyone)
            assert len(everyone) >= 1
        finally:
            process.kill()
    until(lambda: not any(map(alive, everyone)))


# --- number


def test_workers_are_bounded_and_the_one_longest_idle_goes(engine) -> None:
    for number in range(6):
        relations = RelationSet(f"t{number}", 1, (), ())
        assert one(engine, f"SELECT {number}", relations) == number
        assert len(pool_of(engine).pids) <= 3
    until(lambda: len(children()) <= 4)


def test_who_waits_for_a_worker_has_one_started_and_not_one_each() -> None:
    with engine_of() as engine, ExitStack() as held:
        assert one(engine, "SELECT 0 + 1", OTHER) == 1
        until(lambda: len(children()) == 2)
        # As many as one worker takes, and as many as the next one does: they wait for its start.
        with ThreadPoolExecutor(16) as threads:
            opened = [threads.submit(engine.run, LONG, EMPTY) for _ in range(16)]
            for each in opened:
                held.enter_context(each.result())
        assert len(pool_of(engine).pids) == 3
        until(lambda: len(children()) == 4)
        assert pool_of(engine).started <= 5


def test_when_every_worker_serves_others_a_query_is_refused_with_the_time_to_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("query_engine.worker_pool._PATIENCE_SECONDS", 0.2)
    with engine_of(workers=1) as engine:
        running = engine.run(LONG, EMPTY)
        with pytest.raises(Overloaded) as refused:
            engine.run("SELECT 0 + 1", OTHER)
        assert refused.value.code is ErrorCode.TOO_MANY_QUERIES
        assert refused.value.context == {"max_workers": 1, "retry_after_seconds": 1}
        running.close()
        until(lambda: pool_of(engine).users == 0)
        assert one(engine, "SELECT 0 + 1", OTHER) == 1


def test_a_wait_for_a_worker_ends_when_its_caller_goes() -> None:
    with engine_of(workers=1) as engine:
        running = engine.run(LONG, EMPTY)
        button = Interruption()
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(one, engine, "SELECT 0 + 1", OTHER, interruption=button)
            button.interrupt()
            with pytest.raises(Cancelled):
                waiting.result(4)
        running.close()


def test_an_idle_worker_ends() -> None:
    with engine_of(idle=timedelta(seconds=0.2)) as engine:
        assert one(engine, "SELECT 0 + 1") == 1
        (pid,) = pool_of(engine).pids
        until(lambda: not alive(pid))
        assert pool_of(engine).pids == []
        assert one(engine, "SELECT 0 + 1") == 1


def test_a_tenants_directory_that_is_made_later_is_seen(tmp_path: Path, engine) -> None:
    lake = Lake(tmp_path / "acme")
    relations = lake.snapshot(Relation("t", NUMBERS, ()))
    lake.directory.rmdir()
    assert one(engine, "SELECT count(*) FROM t", relations) == 0
    lake = Lake(tmp_path / "acme")
    path = lake.write(NUMBERS, {"a": [1], "b": ["x"]})
    relations = lake.snapshot(Relation("t", NUMBERS, (path,)))
    assert one(engine, "SELECT count(*) FROM t", relations) == 1


# --- walls


def test_a_worker_holds_nothing_of_the_serving_process(engine, monkeypatch) -> None:
    monkeypatch.setenv("DUCKMESH_CATALOG_DSN", "postgresql://secret")
    assert one(engine, "SELECT 0 + 1") == 1
    (pid,) = pool_of(engine).pids
    worker = psutil.Process(pid)
    assert not [name for name in worker.environ() if "DUCKMESH" in name or "KEY" in name]
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["NoNewPrivs"] == "1"
    assert int(fields["CapEff"], 16) & ~0b110 == 0, "only rights to read files may be left"
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert "Max core file size        0                    0" in limits
    space = next(line for line in limits.splitlines() if line.startswith("Max address space"))
    assert int(space.split()[3]) < 3 * 2**30
    kinds = {str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()}
    inherited = {each for each in kinds if each.startswith("/") and not each.startswith("/proc/")}
    stderr = {str(Path("/proc/self/fd/2").readlink())}
    assert inherited <= {"/dev/null"} | stderr
    sockets = [each for each in kinds if each.startswith("socket:")]
    assert len(sockets) == 2, "its orders and the one channel"


WALLED = """
import os, socket, sys
from pathlib import Path
from query_engine import sandbox
print("network", sandbox.leave_network())
sandbox.renounce_privileges(), sandbox.drop_capabilities()
print("files", sandbox.see_only(read=[Path(sys.argv[1])], write=[Path(sys.argv[2])]))
sandbox.limit_resources(address_space_bytes=2**31, file_bytes=2**20)
def attempt(name, act):
    try:
        act()
        print(name, "works")
    except (OSError, MemoryError) as error:
        print(name, type(error).__name__)
attempt("own", lambda: Path(sys.argv[1], "f").read_text())
attempt("overwrite", lambda: Path(sys.argv[1], "f").write_text("x"))
attempt("home", lambda: Path(sys.argv[2], "f").write_text("x"))
attempt("sibling", lambda: Path(sys.argv[1] + "-2", "f").read_text())
attempt("etc", lambda: Path("/etc/passwd").read_text())
attempt("environ", lambda: Path("/proc/1/environ").read_text())
attempt("connect", lambda: socket.create_connection(("127.0.0.1", int(sys.argv[3])), 2))
attempt("kill", lambda: os.kill(os.getppid(), 0))
attempt("memory", lambda: bytearray(2**32))
attempt("large file", lambda: Path(sys.argv[2], "g").write_bytes(b"x" * 2**21))
"""


def test_the_walls_hold_where_the_kernel_has_them(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("own", "home", "own-2")]
    for folder in folders:
        folder.mkdir()
        (folder / "f").write_text("text")
    with socket_that_listens() as port:
        done = subprocess.run(
            [sys.executable, "-c", WALLED, str(folders[0]), str(folders[1]), str(port)],
            capture_output=True,
            text=True,
            check=False,
        )
    told = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert told["own"] == told["home"] == "works", done.stderr
    assert told["memory"] == "MemoryError"
    assert told["large file"] == "OSError"
    if told["files"] == "True":
        refused = {"overwrite", "sibling", "etc", "environ", "connect"}
        assert {told[name] for name in refused} == {"PermissionError"}
    elif told["network"] == "True":
        assert told["connect"] != "works"


@contextmanager
def socket_that_listens() -> Iterator[int]:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
