"""`duckmesh sql` on a running service, with statements from flags, files and a pipe."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from command_line.invocation import Invocation
from command_line.main import program
from command_line.server_address import find_server
from duckmesh.errors import DuckMeshError
from tests.command_line.client_house import running_service

Sql = Callable[..., Result]


@pytest.fixture(scope="module")
def uri(module_database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_service(module_database_dsn, tmp_path_factory.mktemp("sql")) as found:
        yield found


@pytest.fixture
def sql(uri: str) -> Sql:
    def run(*arguments: str, stdin: str = "") -> Result:
        return CliRunner(env={"DUCKMESH_URI": uri}).invoke(
            program, ["sql", *arguments], input=stdin
        )

    return run


def test_statements_of_flags_files_and_a_pipe_run_in_order(sql: Sql, tmp_path: Path) -> None:
    script = tmp_path / "make.sql"
    script.write_text("CREATE TABLE made (id INT, t VARCHAR);\nINSERT INTO made VALUES (1, 'a;b');")
    made = sql("-f", str(script))
    assert made.exit_code == 0, made.output
    assert made.stdout == ""
    assert "(done, " in made.stderr
    assert "(1 row, token " in made.stderr
    both = sql("--wait", "--json", "-c", "SELECT 1 AS a; SELECT t FROM made", "-c", "SELECT 2 AS b")
    assert both.stdout == '[\n{"a":1}\n]\n[\n{"t":"a;b"}\n]\n[\n{"b":2}\n]\n'
    piped = sql("--format", "ndjson", stdin="SELECT 1 AS a;\n-- and\nSELECT NULL AS b")
    assert piped.stdout == '{"a":1}\n{"b":null}\n'


def test_each_format_holds_the_same_rows(sql: Sql) -> None:
    query = """SELECT * FROM (VALUES (1, 'a|b', 1.50::DECIMAL(5,2), DATE '2026-01-02', [1, NULL]),
        (NULL, '', NULL, NULL, NULL)) AS t(id, text, price, day, many) ORDER BY id NULLS LAST"""
    rows = [
        {"id": 1, "text": "a|b", "price": 1.5, "day": "2026-01-02", "many": [1, None]},
        dict.fromkeys(("id", "text", "price", "day", "many")) | {"text": ""},
    ]
    assert json.loads(sql("--json", "-c", query).stdout) == rows
    lines = sql("--format", "ndjson", "-c", query).stdout.splitlines()
    assert [json.loads(line) for line in lines] == rows
    found = list(csv.reader(io.StringIO(sql("--format", "csv", "-c", query).stdout)))
    assert found == [
        ["id", "text", "price", "day", "many"],
        ["1", "a|b", "1.50", "2026-01-02", "[1,null]"],
        ["", "", "", "", ""],
    ]
    assert sql("--format", "markdown", "-c", query).stdout.splitlines() == [
        "| id | text | price | day | many |",
        "| ---: | --- | ---: | --- | --- |",
        "| 1 | a\\|b | 1.50 | 2026-01-02 | [1,null] |",
        "| NULL |  | NULL | NULL | NULL |",
    ]
    table = sql("-c", query)
    assert "DECIMAL(5,2)" in table.stdout
    assert "INTEGER[]" in table.stdout
    assert table.stdout.count("NULL") == 4
    assert "(2 rows, snapshot " in table.stderr
    assert json.loads(sql("--json", "-c", f"{query} LIMIT 0").stdout) == []


def test_a_table_shows_some_rows_and_says_so(sql: Sql) -> None:
    cut = sql("--limit", "3", "-c", "SELECT range AS n FROM range(100000)")
    assert cut.exit_code == 0, cut.output
    assert [line.strip("│ ") for line in cut.stdout.splitlines()[4:-1]] == ["0", "1", "2"]
    assert "(the first 3 rows; --limit or \\limit shows more, " in cut.stderr
    long = sql("--limit", "0", "-c", "SELECT repeat('x', 300) AS t FROM range(1200)")
    assert long.stdout.count("xxx…") == 1200
    expanded = sql("-x", "-c", "SELECT repeat('x', 300) AS t, NULL AS n")
    assert "x" * 300 in expanded.stdout
    assert [line.split() for line in expanded.stdout.splitlines()][-1] == ["n", "NULL"]


def test_parameters_have_names_or_places(sql: Sql) -> None:
    named = sql("--json", "-p", "t=x=y", "-p", "n=2", "-c", "SELECT $n::INT + 1 AS n, $t AS t")
    assert json.loads(named.stdout) == [{"n": 3, "t": "x=y"}]
    placed = sql("--json", "-p", "a", "-p", "=b=c", "-c", "SELECT ? AS first, ? AS second")
    assert json.loads(placed.stdout) == [{"first": "a", "second": "b=c"}]
    wrong = sql("-p", "m=1", "-c", "SELECT $n")
    assert (wrong.exit_code, "parameters are named n: give exactly these" in wrong.stderr) == (
        2,
        True,
    )
    few = sql("-p", "1", "-c", "SELECT ?, ?")
    assert "takes 2 parameters" in few.stderr
    assert sql("-p", "1", "-p", "n=1", "-c", "SELECT 1").exit_code == 2


def test_a_token_and_a_snapshot_choose_what_is_read(sql: Sql) -> None:
    made = sql("-c", "CREATE TABLE versions (n INT); INSERT INTO versions VALUES (1)")
    token = made.stderr.rpartition("token ")[2].partition(",")[0]
    seen = sql("--token", token, "-c", "FROM versions")
    snapshot = seen.stderr.rpartition("snapshot ")[2].partition(",")[0]
    sql("-c", "INSERT INTO versions VALUES (2)")
    count = "SELECT count(*) AS n FROM versions"
    assert json.loads(sql("--wait", "--json", "-c", count).stdout) == [{"n": 2}]
    then = sql("--snapshot", snapshot, "--json", "-c", count)
    assert json.loads(then.stdout) == [{"n": 1}]
    never = sql("--token", "999999999", "-c", count)
    assert never.exit_code == 2
    assert never.stderr.startswith("error VISIBILITY_TOKEN_INVALID: ")


@pytest.mark.parametrize(
    ("statement", "code", "says"),
    [
        ("SELEC 1", 2, "error QUERY_EXECUTION_FAILED: Parser Error: "),
        ("FROM nowhere", 3, "error TABLE_NOT_FOUND: "),
        ("SELECT error('midway')", 2, "error QUERY_EXECUTION_FAILED: Invalid Input Error: midway"),
        ("ATTACH 'x'", 2, "error NOT_SUPPORTED: "),
        ("UPDATE nowhere SET a = 1", 3, "error TABLE_NOT_FOUND: "),
    ],
)
def test_a_refusal_has_its_code_and_ends_the_command(
    statement: str, code: int, says: str, sql: Sql
) -> None:
    result = sql("--json", "-c", f"SELECT 1 AS a; {statement}; SELECT 2 AS b")
    assert result.exit_code == code, result.output
    assert result.stdout == '[\n{"a":1}\n]\n'
    assert says in result.stderr
    assert "FlightSQL" not in result.stderr
    assert "Detail:" not in result.stderr


def test_a_wrong_key_and_a_server_that_is_gone_are_told_apart(sql: Sql, run) -> None:
    denied = sql("--key", "dm_wrong", "-c", "SELECT 1")
    assert (denied.exit_code, denied.stderr[:19]) == (5, "error UNAUTHORIZED:")
    gone = run("sql", "--uri", "grpc://127.0.0.1:1", "-c", "SELECT 1")
    assert gone.exit_code == 6
    assert gone.stderr == (
        "error NOT_READY: the server does not answer: check that it runs, and its URI\n"
    )


def test_ctrl_c_cancels_the_query(uri: str) -> None:
    # The rows are read to nowhere, and never end in the time of a test.
    query = "SELECT range AS n FROM range(100_000_000_000)"
    process = subprocess.Popen(
        [sys.executable, "-m", "command_line.main", "sql", "--format", "csv", "-c", query],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "DUCKMESH_URI": uri},
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"n\r\n"
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == b"error QUERY_CANCELLED: cancelled\n"
        assert process.wait(60) == 130


# --- which server --------------------------------------------------------------------------------


@pytest.fixture
def clients_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    file = tmp_path / "config" / "duckmesh" / "clients.toml"
    file.parent.mkdir(parents=True)
    file.touch(mode=0o600)
    return file


def test_a_profile_names_a_server_and_its_key(uri: str, run, clients_file: Path) -> None:
    clients_file.write_text(f'[profile.here]\nuri = "{uri}"\n[profile.off]\nuri = "grpc://x:1"\n')
    asked = ("--json", "-c", "SELECT 1 AS a")
    assert run("sql", "--to", "here", *asked).stdout == '[\n{"a":1}\n]\n'
    assert run("sql", *asked, DUCKMESH_TO="here").exit_code == 0
    missing = run("sql", "--to", "there", *asked)
    assert missing.exit_code == 3
    assert "clients.toml has no [profile.there]: write it; it has here, off" in missing.stderr
    both = run("sql", "--to", "here", "--uri", uri, *asked)
    assert (both.exit_code, "give one of them" in both.stderr) == (2, True)


def test_keys_that_others_may_read_are_warned_of(uri: str, run, clients_file: Path) -> None:
    clients_file.write_text(f'[profile.here]\nuri = "{uri}"\nkey = "dm_wrong"\n')
    quiet = run("sql", "--to", "here", "-c", "SELECT 1")
    assert quiet.exit_code == 5
    assert "warning" not in quiet.stderr
    clients_file.chmod(0o644)
    loud = run("sql", "--to", "here", "-c", "SELECT 1")
    assert "warning: clients.toml holds keys, and others may read it: chmod 600" in loud.stderr
    assert "dm_wrong" not in loud.stderr


def test_a_profile_brings_its_own_key_and_no_other_server_gets_it(clients_file: Path) -> None:
    (clients_file.parent / "secret").write_text("of-profile\n")
    clients_file.write_text('[profile.p]\nuri = "grpc+tls://db:1"\nkey_file = "secret"\n')
    environment = {
        "XDG_CONFIG_HOME": str(clients_file.parent.parent),
        "DUCKMESH_API_KEY": "of-environment",
    }

    def key(**named: str) -> str | None:
        return find_server(Invocation(), environment=environment, **named).key

    assert key(to="p") == "of-profile"
    assert key(to="p", key="of-flag") == "of-flag"
    assert key(uri="grpc://db:1") == "of-environment"
    assert key(uri="grpc://db:1", key="of-flag") == "of-flag"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("nonsense", "is not TOML"),
        ("[profile.p]\n", "lacks its uri"),
        ('[profile.p]\nuri = "http://x"\n', "the server's URI is refused"),
        ('[profile.p]\nuri = "grpc://x:1"\ntoken = "y"\n', "token is refused"),
        ('[profile.p]\nuri = "grpc://x:1"\nkey_file = "gone"\n', "key_file of [profile.p] cannot"),
        ('[profile.p]\nuri = "grpc://x:1"\nkey = "a"\nkey_file = "b"\n', "leave one out"),
    ],
)
def test_a_wrong_profile_is_told_in_words(content: str, says: str, clients_file: Path) -> None:
    clients_file.write_text(content)
    with pytest.raises(DuckMeshError, match=says.replace("[", r"\[")):
        find_server(Invocation(), to="p")


def test_without_any_server_the_message_names_the_ways_to_one(run) -> None:
    result = run("sql", "-c", "SELECT 1")
    assert result.exit_code == 2
    assert "give --uri, --to or DUCKMESH_URI" in result.stderr
    assert "duckmesh up" in result.stderr
