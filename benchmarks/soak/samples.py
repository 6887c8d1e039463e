"""What the processes hold at a moment: one flat record of numbers, a line of JSON."""

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]

from benchmarks import machine
from benchmarks.figures import percentile
from benchmarks.soak.load import Observed
from benchmarks.soak.processes import Processes

Sample = dict[str, Any]
KINDS: Final = ("ack", "visible", "aggregate", "recent", "point")
_FILES_SQL: Final = """
SELECT count(*) FILTER (WHERE path IS NULL AND end_snapshot IS NULL),
       count(*) FILTER (WHERE path IS NOT NULL AND end_snapshot IS NULL),
       coalesce(sum(file_size_bytes) FILTER (WHERE path IS NOT NULL AND end_snapshot IS NULL), 0),
       count(*)
FROM data_file
"""
_TABLES_SQL: Final = """
SELECT relname, n_live_tup, n_dead_tup, pg_total_relation_size(relid)
FROM pg_stat_user_tables WHERE schemaname = 'public' AND relname NOT LIKE 'duckmesh_%'
"""
_LAG_SQL: Final = """
SELECT coalesce(sum(c.last_token - l.acked_token), 0)
FROM token_counter c JOIN ingest_lease l USING (tenant_id)
"""


class Sampler:
    """Looks at everything. Used by one thread."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._began = time.monotonic()
        self._cpu_before: dict[str, float] = {}
        self._looked_at = self._began
        self._stolen_before = machine.stolen_seconds()
        self._connection = processes.postgres()

    def sample(self, observed: Observed) -> Sample:
        """The numbers of this moment, and of what the load has seen since the last one."""
        now = time.monotonic()
        taken: Sample = {"seconds": round(now - self._began, 1)}
        taken |= _latencies(observed)
        taken |= self._catalog()
        elapsed = now - self._looked_at
        taken |= self._processes_held(elapsed)
        taken |= self._disk()
        stolen = machine.stolen_seconds()
        taken["cores_stolen"] = round((stolen - self._stolen_before) / max(elapsed, 0.1), 3)
        self._stolen_before = stolen
        taken["load_average"] = round(os.getloadavg()[0], 2)
        self._looked_at = now
        return taken

    def close(self) -> None:
        self._connection.close()

    def _catalog(self) -> Sample:
        def one(sql: str) -> Sequence[Any]:
            row: Sequence[Any] | None = self._connection.execute(sql.encode()).fetchone()
            assert row is not None
            return row

        inline, objects, live_bytes, files = one(_FILES_SQL)
        tables = self._connection.execute(_TABLES_SQL.encode()).fetchall()
        return {
            "files_inline": inline,
            "files_objects": objects,
            "files_known": files,
            "store_live_mb": round(float(live_bytes) / 1e6, 2),
            "pending_writes": int(one(_LAG_SQL)[0]),
            "catalog_mb": round(one("SELECT pg_database_size(current_database())")[0] / 1e6, 2),
            "tables": {
                name: {"rows": rows, "dead": dead, "mb": round(size / 1e6, 3)}
                for name, rows, dead, size in tables
                if rows or size > 100_000
            },
        }

    def _processes_held(self, elapsed: float) -> Sample:
        taken: Sample = {}
        for name, members in self._members().items():
            memory = 0.0
            cpu = 0.0
            for each in members:
                with suppress(psutil.NoSuchProcess):
                    memory += each.memory_full_info().pss / 1e6
                    times = each.cpu_times()
                    cpu += times.user + times.system
            taken[f"memory_{name}_mb"] = round(memory, 1)
            # Members come and go: what a dead one used does not count.
            used = cpu - self._cpu_before.get(name, cpu)
            taken[f"cores_{name}"] = round(max(0.0, used) / max(elapsed, 0.1), 3)
            self._cpu_before[name] = cpu
        for name in ("serve", "coordinate"):
            for each in self._members()[name][:1]:
                with suppress(psutil.NoSuchProcess):
                    taken[f"descriptors_{name}"] = each.num_fds()
                    taken[f"threads_{name}"] = each.num_threads()
        taken["workers"] = len(self._members()["workers"])
        return taken

    def _members(self) -> Mapping[str, list[Any]]:
        serve = _process(self._processes.serve.pid)
        postgres = _process(self._processes.postgres_pid)
        return {
            "serve": serve[:1],
            "workers": _children(serve),
            "coordinate": _process(self._processes.coordinate.pid),
            "postgres": postgres + _children(postgres),
        }

    def _disk(self) -> Sample:
        objects, store = _measured(self._processes.objects)
        cached, cache = _measured(self._processes.cache)
        return {
            "store_objects": objects,
            "store_mb": round(store / 1e6, 2),
            "cache_files": cached,
            "cache_mb": round(cache / 1e6, 2),
        }


def _latencies(observed: Observed) -> Sample:
    taken: Sample = {}
    for kind in KINDS:
        seen = observed.seconds.get(kind, [])
        for percent in (50, 95):
            value = round(1000 * percentile(seen, percent), 2) if seen else None
            taken[f"{kind}_p{percent}_ms"] = value
    taken["writes"] = len(observed.seconds.get("ack", []))
    taken["queries"] = sum(len(observed.seconds.get(kind, [])) for kind in KINDS[1:])
    taken["bulk_seconds"] = [round(each, 2) for each in observed.seconds.get("bulk", [])]
    taken["errors"] = dict(observed.errors)
    return taken


def together(observed: Sequence[Observed]) -> Observed:
    """Several looks as one."""
    whole = Observed(errors=Counter())
    for each in observed:
        for kind, seconds in each.seconds.items():
            whole.seconds.setdefault(kind, []).extend(seconds)
        whole.errors.update(each.errors)
    return whole


def _process(pid: int | None) -> list[Any]:
    if pid is None:
        return []
    with suppress(psutil.NoSuchProcess):
        return [psutil.Process(pid)]
    return []


def _children(parents: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for parent in parents:
        with suppress(psutil.NoSuchProcess):
            found += parent.children(recursive=True)
    return found


def _measured(folder: Path) -> tuple[int, int]:
    """Files and bytes below a folder, while others change it."""
    count = size = 0
    for path in _files(folder):
        with suppress(OSError):
            size += path.stat().st_size
            count += 1
    return count, size


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in names)
