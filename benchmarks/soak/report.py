"""A soak in Markdown: what was done, what was seen, and whether it stayed so."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.report import machine_line
from benchmarks.soak.samples import KINDS, Sample
from benchmarks.soak.verdict import Judged

_HEAD: Final = (
    "| series | second quarter | last quarter | ratio | allowed | verdict |\n"
    "|---|---|---|---|---|---|"
)
_PREFACE: Final = """\
# The soak

A steady mixed load, for as long as is said, on processes of their own: Postgres, `coordinate` with
maintenance, `serve` with its workers. Everything that is kept for a while (snapshots, files that no
snapshot reads, idempotency keys, the audit) is kept for an eighth of the run, so that it goes, too.
Writers keep to a clock: a latency counts from when the write was due.
A series is flat when the median of the last quarter is at most the allowed ratio of the second
quarter's, or the difference is noise for its kind. The first quarter fills what is kept.
"""


def markdown(
    verdict: Mapping[str, Any], judged: Sequence[Judged], samples: Sequence[Sample]
) -> str:
    """What a run found."""
    return "\n\n".join(
        [
            _seen(verdict, samples),
            "\n".join([_HEAD, *(_line(each) for each in judged)]) if judged else "Too short.",
        ]
    )


def document(
    verdict: Mapping[str, Any],
    judged: Sequence[Judged],
    samples: Sequence[Sample],
    *,
    command: str,
    plots: Sequence[str],
) -> str:
    """The whole of docs/soak.md."""
    measured = (
        f"Measured on {verdict['date']} with `{command}`; load average "
        f"{verdict['load_average']:g} before.\n{machine_line(verdict['machine'])}"
    )
    pictures = [f"![{path.rpartition('/')[2].removesuffix('.svg')}]({path})" for path in plots]
    parts = [_PREFACE, measured, markdown(verdict, judged, samples), *pictures]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _seen(verdict: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    flat = [each["flat"] for each in verdict["series"]]
    errors = ", ".join(f"{name} {count:,}" for name, count in verdict["errors"].items())
    medians = ", ".join(f"{kind} p95 {_median(samples, f'{kind}_p95_ms')} ms" for kind in KINDS)
    return "\n".join(
        [
            _amounts(verdict["minutes"], samples),
            f"{sum(flat)} of {len(flat)} series are flat.",
            _rows(verdict["exactness"]),
            f"Errors: {errors or 'none'}.",
            f"Medians over the run: {medians}.",
            f"The load average during the run, median: {_median(samples, 'load_average')}.",
            *_stolen(samples),
        ]
    )


def _stolen(samples: Sequence[Sample]) -> list[str]:
    """What no change of ours explains: of each quarter, as the verdict has them."""
    taken = [sample["cores_stolen"] for sample in samples if "cores_stolen" in sample]
    quarter = len(taken) // 4
    if not quarter:
        return []
    quarters = [taken[at * quarter :][:quarter] for at in range(3)] + [taken[-quarter:]]
    medians = ", ".join(f"{statistics.median(each):.2f}" for each in quarters)
    return [f"Cores that other machines took meanwhile, median of each quarter: {medians}."]


def _amounts(minutes: float, samples: Sequence[Sample]) -> str:
    writes = sum(sample["writes"] for sample in samples)
    bulk = [each for sample in samples for each in sample["bulk_seconds"]]
    took = f" (median {statistics.median(bulk):.1f} s)" if bulk else ""
    return (
        f"{minutes:g} minutes: {writes:,} small writes ({writes / max(1.0, 60 * minutes):,.0f}/s), "
        f"{sum(sample['queries'] for sample in samples):,} queries, {len(bulk)} bulk loads{took}."
    )


def _rows(exact: Mapping[str, Any]) -> str:
    return (
        f"Rows: {exact['acknowledged']:,} acknowledged, {exact['found']:,} found, "
        f"{exact['lost']} lost, {exact['doubled']} doubled, {exact['unknown']} unknown, "
        f"{exact['unanswered']} without an answer."
    )


def _median(samples: Sequence[Sample], name: str) -> str:
    found = [sample[name] for sample in samples if sample[name] is not None]
    return f"{statistics.median(found):,.0f}" if found else "-"


def _line(each: Judged) -> str:
    return (
        f"| {each.name} | {each.second_quarter:,.1f} | {each.last_quarter:,.1f} "
        f"| {each.ratio:.2f} | {each.allowed.ratio:g} | {'flat' if each.flat else 'GREW'} |"
    )
