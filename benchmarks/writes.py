"""Rows acknowledged per second, one RPC each, beside a server that stores nothing."""

from collections.abc import Iterator
from typing import Final

from benchmarks.clients import Way
from benchmarks.figures import Figure, Target
from benchmarks.stage import Stage

_TARGETS: Final = {1: Target(0.3, 0.45), 8: Target(0.5, 0.7), 32: Target(0.6, 0.9)}


def measure(stage: Stage) -> Iterator[Figure]:
    """One figure for each number of clients."""
    stage.create_table("writes")
    stage.warm_up("writes")
    for clients, target in _TARGETS.items():
        ours: list[float] = []
        bare: list[float] = []
        for _ in range(stage.sizes.write_repetitions):
            ours.append(_per_second(stage, stage.uri, clients))
            bare.append(_per_second(stage, stage.bare_uri, clients))
        yield Figure(
            benchmark="writes",
            what=f"single-row writes acknowledged, one RPC each, {_clients(clients)}",
            unit="rows/s",
            runs=ours,
            limit="bare pyarrow DoPut, stores nothing",
            limit_runs=bare,
            target=target,
        )


def _per_second(stage: Stage, uri: str, clients: int) -> float:
    seconds = stage.sizes.seconds
    latencies = stage.crew.write(
        Way.ONE_RPC_EACH, uri, table="writes", clients=clients, seconds=seconds
    )
    return len(latencies) / seconds


def _clients(number: int) -> str:
    return "1 client" if number == 1 else f"{number} clients"
