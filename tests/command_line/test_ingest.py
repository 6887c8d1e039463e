"""`duckmesh ingest` on a running service: files in, tokens out, and nothing of a broken file."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from command_line.main import program
from tests.command_line.client_house import duckmesh, running_service

Ingest = Callable[..., Result]


@pytest.fixture(scope="module")
def uri(module_database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_service(module_database_dsn, tmp_path_factory.mktemp("ingest")) as found:
        yield found


@pytest.fixture
def ingest(uri: str) -> Ingest:
    def run(*arguments: str, stdin: bytes = b"") -> Result:
        return CliRunner(env={"DUCKMESH_URI": uri}).invoke(
            program, ["ingest", *arguments], input=stdin
        )

    return run


@pytest.fixture
def ask(uri: str) -> Callable[[str], list[dict[str, Any]]]:
    def rows(sql: str) -> list[dict[str, Any]]:
        result = CliRunner(env={"DUCKMESH_URI": uri}).invoke(
            program, ["sql", "--wait", "--json", "-c", sql]
        )
        assert result.exit_code == 0, result.output
        found: list[dict[str, Any]] = json.loads(result.stdout)
        return found

    return rows


def summary(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


ROWS = pa.table({"id": pa.array([1, 2], pa.int64()), "name": ["ann", "b, c"]})


def as_file(kind: str) -> bytes:
    sink = BytesIO()
    if kind == "parquet":
        pq.write_table(ROWS, sink)
    elif kind == "arrow file":
        with pa.ipc.new_file(sink, ROWS.schema) as writer:
            writer.write(ROWS)
    elif kind == "arrow":
        with pa.ipc.new_stream(sink, ROWS.schema) as writer:
            writer.write(ROWS)
    elif kind == "csv":
        sink.write(b'\xef\xbb\xbfid,name\r\n1,ann\r\n2,"b, c"\r\n')
    elif kind == "tsv":
        sink.write(b"id\tname\n1\tann\n2\tb, c\n")
    else:
        sink.write(b'{"id":1,"name":"ann"}\n\n{"name":"b, c","id":2}')
    return sink.getvalue()


SUFFIXES = {
    "csv": ".csv",
    "tsv": ".tsv",
    "ndjson": ".jsonl",
    "parquet": ".parquet",
    "arrow": ".arrows",
    "arrow file": ".feather",
}


@pytest.mark.parametrize("kind", SUFFIXES)
def test_every_format_makes_the_same_table(kind: str, ingest: Ingest, ask, tmp_path: Path) -> None:
    file = tmp_path / f"rows{SUFFIXES[kind]}"
    file.write_bytes(as_file(kind))
    table = f"of_{kind.replace(' ', '_')}"
    told = summary(ingest(str(file), "-t", table, "--mode", "create", "--wait", "--json"))
    assert (told["rows"], told["duplicate"]) == (2, False)
    assert told["token"] >= 1
    assert told["visible_snapshot"] >= 1
    assert ask(f"FROM {table} ORDER BY id") == [{"id": 1, "name": "ann"}, {"id": 2, "name": "b, c"}]
    again = summary(
        ingest("-", "--format", kind.partition(" ")[0], "-t", table, "--json", stdin=as_file(kind))
    )
    assert again["token"] > told["token"]
    assert ask(f"SELECT count(*) AS n FROM {table}") == [{"n": 4}]


def test_a_compressed_file_is_read_as_what_it_holds(ingest: Ingest, ask, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv.gz"
    file.write_bytes(gzip.compress(as_file("csv")))
    assert summary(ingest(str(file), "-t", "zipped", "--mode", "create", "--json"))["rows"] == 2
    assert ask("SELECT sum(id)::INT AS n FROM zipped") == [{"n": 3}]


def test_texts_take_the_types_of_the_table(ingest: Ingest, ask, uri: str, tmp_path: Path) -> None:
    made = duckmesh(
        "sql", "-c", "CREATE TABLE typed (code VARCHAR, price DECIMAL(9,2), seen DATE)", uri=uri
    )
    assert made.returncode == 0, made.stderr
    file = tmp_path / "typed.csv"
    file.write_text('code,price\n007,1.10\n"",\n')
    assert ingest(str(file), "-t", "typed").exit_code == 0
    assert ask("SELECT code, price::VARCHAR AS price, seen FROM typed ORDER BY code DESC") == [
        {"code": "007", "price": "1.10", "seen": None},
        {"code": "", "price": None, "seen": None},
    ]


def test_a_repeat_with_the_key_is_a_duplicate(ingest: Ingest, ask, tmp_path: Path) -> None:
    file = tmp_path / "keyed.csv"
    file.write_bytes(as_file("csv"))
    arguments = (str(file), "-t", "keyed", "--mode", "create_append", "--idempotency-key", "load-1")
    first = summary(ingest(*arguments, "--json"))
    between = summary(ingest(str(file), "-t", "keyed", "--json"))
    second = summary(ingest(*arguments, "--json"))
    assert (first["duplicate"], second["duplicate"]) == (False, True)
    assert first["token"] == second["token"] < between["token"]
    assert "duplicate: written before, nothing added" in ingest(*arguments).stderr
    assert ask("SELECT count(*) AS n FROM keyed") == [{"n": 4}]
    file.write_text("id,name\n9,other\n")
    conflict = ingest(*arguments)
    assert conflict.exit_code == 4
    assert conflict.stderr.startswith("error IDEMPOTENCY_CONFLICT: ")


def test_several_files_have_a_key_each_and_go_on_where_they_stopped(
    ingest: Ingest, ask, tmp_path: Path
) -> None:
    for day in (1, 2, 3):
        (tmp_path / f"day-{day}.csv").write_text(f"id,name\n{day},d{day}\n")
    (tmp_path / "day-2.csv").write_text("id,name\nmany,broken\n")
    pattern = str(tmp_path / "day-*.csv")
    arguments = (pattern, "-t", "days", "--mode", "create", "--idempotency-key", "week")
    broken = ingest(*arguments)
    assert broken.exit_code == 2
    assert "1 of 3 files were accepted, up to day-1.csv" in broken.stderr
    assert "error INVALID_PAYLOAD: day-2.csv, row 1, column 'id': " in broken.stderr
    assert ask("SELECT id FROM days") == [{"id": 1}]

    (tmp_path / "day-2.csv").write_text("id,name\n2,mended\n")
    told = summary(ingest(*arguments, "--json"))
    assert [each["duplicate"] for each in told["files"]] == [True, False, False]
    assert ask("SELECT id FROM days ORDER BY id") == [{"id": 1}, {"id": 2}, {"id": 3}]


def test_replace_leaves_these_rows_alone(ingest: Ingest, ask, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.ndjson").write_text(f'{{"name": "{name}"}}\n')
    files = (str(tmp_path / "a.ndjson"), str(tmp_path / "b.ndjson"))
    for _ in range(2):
        assert ingest(*files, "-t", "whole", "--mode", "replace").exit_code == 0
    assert ask("SELECT name FROM whole ORDER BY name") == [{"name": "a"}, {"name": "b"}]


BROKEN = {
    "late.csv": (b"id,name\n" + b"1,x\n" * 300_000 + b"many,x\n", "row 300001, column 'id'"),
    "short.csv": (b"id,name\n1,x\n2\n", "Expected 2 columns, got 1"),
    "unknown.csv": (b"id,colour\n1,red\n", "columns that the table lacks: colour"),
    "line.ndjson": (b'{"id":1}\n{"id":\n', "line.ndjson, row 2: "),
    "list.ndjson": (b'{"id":1}\n[2]\n', "row 2: it is no JSON object"),
    "type.ndjson": (b'{"id":1}\n{"id":"x"}\n', "row 2, column 'id'"),
    "cut.parquet": (as_file("parquet")[:-5], "is not valid PARQUET"),
    "no.arrow": (b"never was", "is not valid ARROW"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_nothing_of_a_broken_file_is_accepted(
    name: str, ingest: Ingest, ask, tmp_path: Path
) -> None:
    content, says = BROKEN[name]
    whole, broken = tmp_path / "whole.csv", tmp_path / name
    whole.write_bytes(as_file("csv"))
    assert ingest(str(whole), "-t", "target", "--mode", "replace").exit_code == 0
    broken.write_bytes(content)
    result = ingest(str(broken), "-t", "target")
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert str(tmp_path) not in result.stderr
    assert ask("SELECT count(*) AS n FROM target") == [{"n": 2}]


def test_what_is_wrong_is_said_before_anything_is_sent(ingest: Ingest, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("x")
    for arguments, code, says in (
        ((str(tmp_path / "rows.txt"),), 2, "its suffix tells no format: give --format"),
        (("-",), 2, "standard input has no suffix: give --format"),
        ((str(tmp_path / "gone.csv"),), 3, "gone.csv: there is no such file"),
        ((str(tmp_path / "*.csv"),), 3, "no file matches"),
    ):
        result = ingest(*arguments, "-t", "never")
        assert result.exit_code == code, result.output
        assert says in result.stderr
    (tmp_path / "rows.csv").write_bytes(as_file("csv"))
    missing = ingest(str(tmp_path / "rows.csv"), "-t", "never")
    assert missing.exit_code == 3
    assert missing.stderr.startswith("error TABLE_NOT_FOUND: ")


PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
"""
"""Runs a command and tells its peak, in KiB. A process of its own, for a child's peak begins with
the size of the process that forks it, and this test's process is large."""


def test_a_large_file_takes_bounded_memory(uri: str, tmp_path: Path) -> None:
    file = tmp_path / "large.csv"
    line = b"%d," + b"x" * 200 + b"\n"
    with file.open("wb") as out:
        out.write(b"id,text\n")
        for start in range(0, 2_500_000, 10_000):
            out.write(b"".join(line % n for n in range(start, start + 10_000)))
    assert file.stat().st_size > 500_000_000
    command = ["ingest", str(file), "-t", "large", "--mode", "create", "--json", "--uri", uri]
    measured = subprocess.run(
        [sys.executable, "-c", PEAK, sys.executable, "-P", "-m", "command_line.main", *command],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert json.loads(measured.stdout)["rows"] == 2_500_000
    peak = int(measured.stderr.splitlines()[-1]) * 1024
    assert peak < 450 * 2**20
