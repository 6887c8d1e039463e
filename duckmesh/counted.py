"""Counters and histograms that cost a small write next to nothing.

`prometheus_client` has them as well, and its registry and its text are used for these too. Six of
its updates cost a write of one row some twentieth of its time, for each passes several layers.
"""

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_INFINITY: Final = "+Inf"


class Count:
    """A number that grows. Thread-safe."""

    __slots__ = ("_lock", "_value")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value: float = 0

    def inc(self, amount: float = 1) -> None:
        with self._lock:
            self._value += amount

    @property
    def value(self) -> float:
        return self._value


class Distribution:
    """How often a number was up to each of some bounds, and the sum of all. Thread-safe."""

    __slots__ = ("_bounds", "_counts", "_lock", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._lock = threading.Lock()
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum: float = 0

    def observe(self, value: float) -> None:
        at = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[at] += 1
            self._sum += value

    def read(self) -> tuple[list[int], float]:
        """For each bound, and for all beyond them: how many were no larger. And the sum."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        so_far = 0
        for at, count in enumerate(counts):
            so_far += count
            counts[at] = so_far
        return counts, total


_Part = TypeVar("_Part", Count, Distribution)


class _ByLabels(Collector, Generic[_Part]):
    """One metric: a part for each combination of its labels' values, in their order of need."""

    def __init__(
        self, name: str, meaning: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._meaning = meaning
        self._labels = tuple(labels)
        self._parts: dict[tuple[str, ...], _Part] = {}
        self._making = threading.Lock()
        if not labels:
            # What has no labels is told from the beginning on.
            self.labels()
        registry.register(self)

    def labels(self, *values: str) -> _Part:
        """The part of these values. Whoever needs it often keeps it."""
        part = self._parts.get(values)
        if part is None:
            if len(values) != len(self._labels):
                raise ValueError(f"{self._name} has the labels {self._labels}")
            with self._making:
                part = self._parts.setdefault(values, self._made())
        return part

    def _made(self) -> _Part:
        raise NotImplementedError

    def _read(self) -> list[tuple[tuple[str, ...], _Part]]:
        with self._making:
            return list(self._parts.items())


class Counter(_ByLabels[Count]):
    """A count for each combination of labels."""

    def _made(self) -> Count:
        return Count()

    def inc(self, amount: float = 1) -> None:
        """Of a counter without labels."""
        self.labels().inc(amount)

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._meaning, labels=self._labels)
        for values, count in self._read():
            family.add_metric(values, count.value)
        yield family


class Histogram(_ByLabels[Distribution]):
    """A distribution for each combination of labels."""

    def __init__(
        self,
        name: str,
        meaning: str,
        labels: Sequence[str],
        registry: CollectorRegistry,
        bounds: Iterable[float],
    ) -> None:
        self._bounds = tuple(float(each) for each in bounds)
        if list(self._bounds) != sorted(set(self._bounds)):
            raise ValueError("the bounds of a histogram grow")
        super().__init__(name, meaning, labels, registry)

    def _made(self) -> Distribution:
        return Distribution(self._bounds)

    def observe(self, value: float) -> None:
        """Of a histogram without labels."""
        self.labels().observe(value)

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._meaning, labels=self._labels)
        names = [*map(floatToGoString, self._bounds), _INFINITY]
        for values, distribution in self._read():
            counts, total = distribution.read()
            family.add_metric(values, list(zip(names, counts, strict=True)), total)
        yield family
