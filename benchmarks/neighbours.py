"""What one client waits for beside another tenant's crowd, and beside its bombs."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from benchmarks.clients import Crew
from benchmarks.data import bulk_rows
from benchmarks.figures import Direction, Figure, Target, percentile
from benchmarks.stage import Stage

_TABLE: Final = "shared_name"
_QUESTION: Final = f"SELECT site, count(*) AS n FROM {_TABLE} GROUP BY site"  # noqa: S608
_GREEDY_CLIENTS: Final = 64
_BOMBERS: Final = 4
_BOMB: Final = (
    "SELECT count(*) FROM range(20000000) a, range(2000000) b WHERE a.range + b.range < 0"
)
_PATIENCE_SECONDS: Final = 2.0
_QUIET_ROWS: Final = 500_000


def measure(stage: Stage) -> Iterator[Figure]:
    """The p95 of a tenant with one client, beside 64 greedy ones of another, and beside bombs."""
    quiet, greedy = stage.tenant("quiet"), stage.tenant("greedy")
    rows = bulk_rows(min(_QUIET_ROWS, stage.sizes.bulk_rows))
    for secret in (quiet, greedy):
        with stage.connect(secret=secret) as connection, connection.cursor() as cursor:
            cursor.adbc_ingest(_TABLE, rows, mode="create")
            cursor.execute(_QUESTION)
            cursor.fetchall()
    with Crew(processes=1) as one:
        for what, sql, clients in (
            (f"{_GREEDY_CLIENTS} greedy clients of another tenant", _QUESTION, _GREEDY_CLIENTS),
            (f"{_BOMBERS} of another tenant who ask what does not end", _BOMB, _BOMBERS),
        ):
            yield _beside(stage, one, (quiet, greedy), what=what, sql=sql, clients=clients)


def _beside(
    stage: Stage, one: Crew, secrets: tuple[str, str], *, what: str, sql: str, clients: int
) -> Figure:
    quiet, greedy = secrets
    crowded: list[float] = []
    alone: list[float] = []
    seconds = 2 * stage.sizes.seconds
    for _ in range(stage.sizes.repetitions):
        alone.append(_p95_ms(one, stage.uri, quiet, seconds))
        with ThreadPoolExecutor(1) as beside:
            crowd = beside.submit(
                stage.crew.ask,
                stage.uri,
                sql,
                clients=clients,
                seconds=2 * seconds,
                secret=greedy,
                give_up_seconds=_PATIENCE_SECONDS,
            )
            crowded.append(_p95_ms(one, stage.uri, quiet, seconds, after=0.02 * clients + 0.5))
            crowd.result()
    return Figure(
        benchmark="neighbours",
        what=f"group-by of one client beside {what}, p95",
        unit="ms",
        runs=crowded,
        limit="the same client alone",
        limit_runs=alone,
        direction=Direction.LOWER,
        target=Target(None, 2.0),
    )


def _p95_ms(one: Crew, uri: str, secret: str, seconds: float, *, after: float = 0) -> float:
    took = one.ask(uri, _QUESTION, clients=1, seconds=seconds, secret=secret, after=after)
    return percentile(took, 95) * 1000
