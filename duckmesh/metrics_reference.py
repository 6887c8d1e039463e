"""docs/metrics.md, written from the metrics themselves.

`python -m duckmesh.metrics_reference` in the tree's root writes it; a test keeps it current.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from prometheus_client.core import CounterMetricFamily

from duckmesh.live_metrics import FAMILIES
from duckmesh.metrics import COUNTED, Counted

_INTRODUCTION: Final = """# Metrics

This file is generated from the metrics in the code: `python -m duckmesh.metrics_reference`.

| process | where | more |
|---|---|---|
| `duckmesh serve` | `GET /v1/metrics` of the HTTP door | no credentials; it names no tenant |
| `duckmesh coordinate` | `GET /metrics` at `coordinator.metrics_port` | not opened when not set |

Both pages are Prometheus text and list every metric; one that a process has no part in stays at 0.
They answer when the catalog is away, without the live metrics of the catalog: then
`duckmesh_scrape_failures_total` grows.

Labels are bounded. `code` is `OK`, an error code of [errors](errors.md), an HTTP status or a gRPC
status. `route` is a route's template, `method` an HTTP method or a Flight RPC. `duty` is the name
of a duty. `tenant` is there for a bounded number of tenants, at a coordinator alone.

A histogram has the series `_bucket`, `_sum` and `_count`; times are in seconds.
"""

_COUNTED: Final = """
## Counted by each process

A counter begins at 0 when its process starts: add up the processes, and use `rate`.

"""

_LIVE: Final = """
## Asked for at each scrape

Those of the catalog (lag, tokens, leases, dead letters) are the same at every process: use `max`.
The others are one serving process's own.

"""


def metrics_page() -> str:
    """The text of docs/metrics.md."""
    return _INTRODUCTION + _COUNTED + _table(iter(COUNTED)) + _LIVE + _table(_live())


def metric_names() -> frozenset[str]:
    """The names that a scrape may hold, with those of a histogram's series."""
    names = {each.name for each in (*COUNTED, *_live())}
    parts = ("_bucket", "_sum", "_count")
    histograms = (each.name for each in COUNTED if each.kind == "histogram")
    return frozenset(names | {f"{name}{part}" for name in histograms for part in parts})


def _live() -> Iterator[Counted]:
    for family in FAMILIES:
        counts = family.kind is CounterMetricFamily
        name = f"{family.name}_total" if counts else family.name
        yield Counted(name, "counter" if counts else "gauge", family.labels, family.meaning)


def _table(metrics: Iterator[Counted]) -> str:
    rows = (
        f"| `{each.name}` | {each.kind} | {', '.join(f'`{label}`' for label in each.labels)} "
        f"| {each.meaning} |\n"
        for each in metrics
    )
    return "| metric | type | labels | meaning |\n|---|---|---|---|\n" + "".join(rows)


def main(root: Path) -> None:
    """Write the page below `root`."""
    (root / "docs" / "metrics.md").write_text(metrics_page(), encoding="utf-8")


if __name__ == "__main__":
    main(Path.cwd())
