"""How long an acknowledgement takes, and how long a write takes to be seen."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from benchmarks.clients import PlainClient, Way
from benchmarks.data import one_row_batch
from benchmarks.figures import Direction, Figure, Target, percentile
from benchmarks.stage import Stage

_NONE: Final = Target(None, None)
_ACK_TARGETS: Final = {
    (8, 50): Target(None, 4.0, of_ratio=False),
    (8, 95): Target(50.0, 10.0, of_ratio=False),
}
_VISIBLE_TARGETS: Final = {
    50: Target(None, 25.0, of_ratio=False),
    95: Target(500.0, 100.0, of_ratio=False),
}
_PAUSE_SECONDS: Final = 0.02
_PUBLISHED_SQL: Final = """
SELECT extract(epoch FROM s.created_at - e.ingested_at)::double precision * 1000
FROM ingest_event e
CROSS JOIN LATERAL (
    SELECT min(created_at) AS created_at FROM snapshot
    WHERE tenant_id = e.tenant_id AND max_visibility_token >= e.visibility_token
) s
WHERE e.visibility_token = ANY(%s) AND s.created_at IS NOT NULL
"""


def measure(stage: Stage) -> Iterator[Figure]:
    """Acknowledgement at 1 and 8 clients; visibility with and without somebody who waits."""
    stage.create_table("latency")
    stage.warm_up("latency")
    for clients in (1, 8):
        yield from _acknowledged(stage, clients)
    asked = [_asked_for(stage) for _ in range(stage.sizes.repetitions)]
    yield from _visible("write to answer of a query with its token, low load", asked)
    left = [_left_alone(stage) for _ in range(stage.sizes.repetitions)]
    yield from _visible("acceptance to publication, nobody waits, low load", left)


def _acknowledged(stage: Stage, clients: int) -> Iterator[Figure]:
    ours: list[list[float]] = []
    bare: list[list[float]] = []
    for _ in range(stage.sizes.repetitions):
        for uri, runs in ((stage.uri, ours), (stage.bare_uri, bare)):
            seconds = stage.crew.write(
                Way.ONE_RPC_EACH,
                uri,
                table="latency",
                clients=clients,
                seconds=stage.sizes.seconds,
            )
            runs.append([each * 1000 for each in seconds])
    for percent in (50, 95):
        yield Figure(
            benchmark="latency",
            what=f"acknowledgement, one RPC each, {clients} client{'s'[: clients > 1]}, p{percent}",
            unit="ms",
            runs=[percentile(run, percent) for run in ours],
            limit="bare pyarrow DoPut, stores nothing",
            limit_runs=[percentile(run, percent) for run in bare],
            direction=Direction.LOWER,
            target=_ACK_TARGETS.get((clients, percent), _NONE),
        )


def _visible(what: str, runs: Sequence[Sequence[float]]) -> Iterator[Figure]:
    for percent, target in _VISIBLE_TARGETS.items():
        yield Figure(
            benchmark="latency",
            what=f"{what}, p{percent}",
            unit="ms",
            runs=[percentile(run, percent) for run in runs],
            direction=Direction.LOWER,
            target=target,
        )


def _asked_for(stage: Stage) -> list[float]:
    """Milliseconds from the sending of a write to the answer of the query that names it."""
    client = PlainClient(stage.uri)
    batch = one_row_batch(1)
    took: list[float] = []
    for _ in range(_writes_of(stage)):
        sent_at = time.monotonic()
        token = client.put("latency", batch)
        client.read("SELECT count(*) FROM latency", token=token).read_all()
        took.append((time.monotonic() - sent_at) * 1000)
        _pause()
    client.close()
    return took


def _left_alone(stage: Stage) -> list[float]:
    """The same from acceptance to publication, both by the catalog's clock."""
    client = PlainClient(stage.uri)
    batch = one_row_batch(1)
    tokens: list[int] = []
    for _ in range(_writes_of(stage)):
        tokens.append(client.put("latency", batch))
        # Longer than a flush interval now and then, so that the coordinator is found idle, too.
        _pause(_PAUSE_SECONDS * (1 + len(tokens) % 10))
    client.read("SELECT count(*) FROM latency", token=tokens[-1]).read_all()
    client.close()
    with stage.postgres() as connection:
        rows = connection.execute(_PUBLISHED_SQL, (tokens,)).fetchall()
    assert len(rows) == len(tokens)
    return [row[0] for row in rows]


def _writes_of(stage: Stage) -> int:
    return max(10, stage.sizes.questions // 8)


def _pause(seconds: float = _PAUSE_SECONDS) -> None:
    """Low load: nothing is under way when the next write comes."""
    _sleep(seconds)


_sleep: Final[Callable[[float], object]] = threading.Event().wait
