"""The target table: every row of it has figures, or is said not to be measured."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.figures import Figure


@dataclass(frozen=True, slots=True)
class TargetRow:
    """One row of the target table, and where its figures come from."""

    what: str
    benchmark: str
    names: str = ""
    """A regular expression that the beginning of a figure's name matches; any when empty."""

    def has(self, figure: Figure) -> bool:
        """Whether the figure says something of this row."""
        aimed = figure.target.floor is not None or figure.target.goal is not None
        return (
            figure.benchmark == self.benchmark
            and (aimed or bool(figure.not_run))
            and re.match(self.names, figure.what) is not None
        )


TARGET_TABLE: Final = (
    TargetRow("one-row durable writes over Flight, one RPC each, 1 / 8 / 32 clients", "writes"),
    TargetRow("the same over long-lived streams, pipelined, 1 / 2 / 4 / 8", "streams"),
    TargetRow("acknowledgement at 8 clients, one RPC each", "latency", "acknowledgement"),
    TargetRow("bulk adbc_ingest of 10,000,000 rows, durable and visible", "ingest", "(?!memory)"),
    TargetRow("30,000 batches of 10 rows x 23 columns from 16 clients", "ducklake"),
    TargetRow("write to visible, low load", "latency", "(?!acknowledgement)"),
    TargetRow("SELECT 1 over ADBC, end to end", "queries", "SELECT 1"),
    TargetRow("DoGet of 10,000,000 rows", "queries", "DoGet"),
    TargetRow("TPC-H SF1, 22 queries over a compacted snapshot", "tpch"),
    TargetRow("1,000 micro-batches, before and after compaction", "compaction"),
    TargetRow("keyed table with 1 % / 10 % of rows superseded", "keyed"),
    TargetRow("HTTP one-record ingest, 32 connections", "http", "single JSON records"),
    TargetRow("memory of serve", "ingest", "memory"),
)


def not_measured(figures: Sequence[Figure]) -> list[TargetRow]:
    """The rows of the target table of which no figure says anything."""
    return [row for row in TARGET_TABLE if not any(row.has(figure) for figure in figures)]


def aimed(figures: Sequence[Figure]) -> list[Figure]:
    """The figures with a floor or a goal: first in the order of the target table, then others."""
    ordered = [figure for row in TARGET_TABLE for figure in figures if row.has(figure)]
    others = [
        figure
        for figure in figures
        if figure not in ordered
        and (figure.target.floor is not None or figure.target.goal is not None)
    ]
    return ordered + others
