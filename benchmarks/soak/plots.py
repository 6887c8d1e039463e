"""The series of a soak over time, as SVG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.plots import plotting, save, settings
from benchmarks.soak.samples import Sample
from benchmarks.soak.verdict import value

_PANELS: Final = (
    (
        "soak-latency",
        (
            ("p95, ms", ("ack_p95_ms", "visible_p95_ms")),
            ("p95 of queries, ms", ("aggregate_p95_ms", "recent_p95_ms", "point_p95_ms")),
            ("writes waiting", ("pending_writes",)),
            (
                "cores",
                (
                    "cores_serve",
                    "cores_workers",
                    "cores_coordinate",
                    "cores_postgres",
                    "cores_stolen",
                ),
            ),
        ),
    ),
    (
        "soak-storage",
        (
            ("live files", ("files_inline", "files_objects")),
            ("files the catalog knows", ("files_known",)),
            ("MB", ("catalog_mb", "store_mb", "store_live_mb", "cache_mb")),
            (
                "rows in the catalog",
                (
                    "tables.ingest_event.rows",
                    "tables.snapshot.rows",
                    "tables.snapshot_file.rows",
                    "tables.query_audit.rows",
                ),
            ),
        ),
    ),
    (
        "soak-memory",
        (
            (
                "MB",
                (
                    "memory_serve_mb",
                    "memory_workers_mb",
                    "memory_coordinate_mb",
                    "memory_postgres_mb",
                ),
            ),
            ("descriptors", ("descriptors_serve", "descriptors_coordinate")),
            ("threads", ("threads_serve", "threads_coordinate")),
        ),
    ),
)


def draw(samples: Sequence[Sample], folder: Path) -> list[Path]:
    """One picture for latency, one for storage, one for memory; none without matplotlib."""
    pyplot = plotting()
    if pyplot is None or not samples:
        return []
    minutes = [sample["seconds"] / 60 for sample in samples]
    drawn = []
    with pyplot.rc_context(settings()):
        for name, panels in _PANELS:
            figure, axes = pyplot.subplots(len(panels), 1, figsize=(9, 1.9 * len(panels)))
            for axis, (label, series) in zip(axes, panels, strict=True):
                _panel(axis, minutes, samples, label, series)
            axes[-1].set_xlabel("minutes")
            drawn.append(save(pyplot, figure, folder / f"{name}.svg"))
    return drawn


def _panel(
    axis: Any,
    minutes: Sequence[float],
    samples: Sequence[Sample],
    label: str,
    series: Sequence[str],
) -> None:
    for name in series:
        values = [value(sample, name) for sample in samples]
        if any(each is not None for each in values):
            shown = name.removeprefix("tables.").removesuffix(".rows")
            axis.plot(minutes, values, linewidth=1, label=shown)
    axis.set_ylim(bottom=0)
    axis.set_xlim(left=0)
    axis.set_ylabel(label)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
