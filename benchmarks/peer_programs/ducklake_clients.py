"""Stream batches into DuckLake, then ask: `ducklake_clients.py <order.json>`.

Runs in the peers' environment, which has DuckDB and its extensions and nothing of this project.
The order names the file of rows, the folder for data, the number of clients, the rows of a batch,
the seconds after which no batch is begun, and the questions. PEER_DSN says where the catalog is.
Prints JSON: the batches that were committed, in how many seconds, and each question's seconds. When
the questions are asked, all rows are there: what the clients did not come to is added before.
"""

import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import duckdb

INLINED_ROWS_MAX = 1_000


def main() -> None:
    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with duckdb.connect(config={"threads": "2"}) as connection:
        for name in ("ducklake", "postgres_scanner"):
            home = Path(importlib.import_module(f"duckdb_extension_{name}").__file__ or "").parent
            (extension,) = home.glob(f"extensions/v{duckdb.__version__}/*.duckdb_extension")
            connection.execute(f"LOAD '{extension}'")
        # Committers collide on the number of the snapshot: they are to try again at once.
        connection.execute("SET ducklake_max_retry_count = 1000")
        connection.execute("SET ducklake_retry_wait_ms = 1")
        connection.execute("SET ducklake_retry_backoff = 1.0")
        connection.execute(
            f"ATTACH 'ducklake:postgres:{os.environ['PEER_DSN']}' AS lake "
            f"(DATA_PATH '{order['folder']}', DATA_INLINING_ROW_LIMIT {INLINED_ROWS_MAX})"
        )
        connection.execute(f"CREATE TABLE source AS FROM '{order['rows']}'")
        connection.execute("CREATE TABLE lake.streamed AS FROM source LIMIT 0")
        began = time.monotonic()
        done = stream(connection, order)
        seconds = time.monotonic() - began
        fill(connection, done, order["batch_rows"])
        took = [ask(connection, each.format("lake.streamed")) for each in order["questions"]]
        counts = [
            connection.execute(f"SELECT count(*) FROM {name}").fetchone()  # noqa: S608
            for name in ("source", "lake.streamed")
        ]
    if counts[0] != counts[1]:
        raise SystemExit(f"of {counts[0]} rows {counts[1]} are there")
    print(json.dumps({"batches": len(done), "seconds": seconds, "questions": took}))


def stream(connection: duckdb.DuckDBPyConnection, order: dict[str, Any]) -> set[int]:
    """Every client commits its share of the batches, each by an INSERT; the numbers of those."""
    (rows,) = connection.execute("SELECT count(*) FROM source").fetchone() or (0,)
    done: set[int] = set()
    failures: list[BaseException] = []
    end_at = time.monotonic() + order["seconds"]

    def run(client: int) -> None:
        try:
            with connection.cursor() as cursor:
                for batch in range(client, rows // order["batch_rows"], order["clients"]):
                    if time.monotonic() > end_at:
                        return
                    insert(cursor, batch * order["batch_rows"], order["batch_rows"])
                    done.add(batch)
        except duckdb.Error as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(each,)) for each in range(order["clients"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f"{len(failures)} clients failed, the first with: {failures[0]}")
    return done


def fill(connection: duckdb.DuckDBPyConnection, done: set[int], batch_rows: int) -> None:
    """Add the rows of the batches that are not done, inlined as well, in large transactions."""
    connection.execute("CREATE TABLE done AS SELECT unnest(?::BIGINT[]) AS batch", [sorted(done)])
    connection.execute(
        "CREATE TABLE missing AS SELECT * FROM source "  # noqa: S608 - numbers of ours
        f"WHERE rowid // {batch_rows} NOT IN (SELECT batch FROM done)"
    )
    (rows,) = connection.execute("SELECT count(*) FROM missing").fetchone() or (0,)
    for first in range(0, rows, INLINED_ROWS_MAX):
        insert(connection, first, INLINED_ROWS_MAX, source="missing")


def insert(
    cursor: duckdb.DuckDBPyConnection, first: int, rows: int, *, source: str = "source"
) -> None:
    cursor.execute(
        f"INSERT INTO lake.streamed SELECT * FROM {source} "  # noqa: S608 - names of ours
        f"WHERE rowid BETWEEN {first} AND {first + rows - 1}"
    )


def ask(connection: duckdb.DuckDBPyConnection, question: str) -> float:
    began = time.monotonic()
    connection.execute(question).fetchall()
    return time.monotonic() - began


if __name__ == "__main__":
    main()
