"""Counters and histograms of our own, beside those of prometheus_client."""

from concurrent.futures import ThreadPoolExecutor

import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from duckmesh.counted import Counter, Histogram

BOUNDS = (0.001, 0.5, 1, 1024, 4 * 2**20)
CODES = ("OK", 'a "quoted" one')


@pytest.fixture(autouse=True)
def no_created_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prometheus_client.metrics._use_created", False)


def page(ours: bool, events: list[tuple[str, float]]) -> bytes:
    registry = CollectorRegistry()
    if ours:
        plain = Counter("plain", "Of all.", (), registry)
        by_code = Counter("by_code", "By code.", ("code",), registry)
        sizes = Histogram("sizes", "Of all.", (), registry, BOUNDS)
        seconds = Histogram("seconds", "By code.", ("code",), registry, BOUNDS)
    else:
        plain = prometheus_client.Counter("plain", "Of all.", registry=registry)
        by_code = prometheus_client.Counter("by_code", "By code.", ("code",), registry=registry)
        sizes = prometheus_client.Histogram("sizes", "Of all.", buckets=BOUNDS, registry=registry)
        seconds = prometheus_client.Histogram(
            "seconds", "By code.", ("code",), buckets=BOUNDS, registry=registry
        )
    for code, value in events:
        plain.inc()
        by_code.labels(code).inc(value)
        sizes.observe(value)
        seconds.labels(code).observe(value)
    return generate_latest(registry)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(CODES),
            st.sampled_from(BOUNDS) | st.floats(0, 1e9, allow_subnormal=False),
        ),
        max_size=20,
    )
)
def test_the_page_is_as_the_library_writes_it(events: list[tuple[str, float]]) -> None:
    assert page(True, events) == page(False, events)


def test_threads_lose_nothing() -> None:
    registry = CollectorRegistry()
    counter = Counter("c", "Of all.", ("code",), registry)
    histogram = Histogram("h", "Of all.", (), registry, BOUNDS)

    def count(thread: int) -> None:
        for number in range(2_000):
            counter.labels(str(number % 7)).inc(2)
            histogram.observe(thread)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(count, range(8)))
    found = [registry.get_sample_value("c_total", {"code": str(each)}) or 0 for each in range(7)]
    assert sum(found) == 8 * 2_000 * 2
    assert registry.get_sample_value("h_count") == 8 * 2_000
    assert registry.get_sample_value("h_sum") == 2_000 * sum(range(8))
    assert registry.get_sample_value("h_bucket", {"le": "1.0"}) == 2 * 2_000


def test_what_contradicts_its_declaration_is_refused() -> None:
    registry = CollectorRegistry()
    counter = Counter("c", "By code.", ("code",), registry)
    with pytest.raises(ValueError, match="labels"):
        counter.inc()
    with pytest.raises(ValueError, match="labels"):
        counter.labels("a", "b")
    with pytest.raises(ValueError, match="grow"):
        Histogram("h", "Falls.", (), registry, (2, 1))
