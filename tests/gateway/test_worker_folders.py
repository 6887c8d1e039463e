"""A tenant's worker stays when the tenant's first rows come."""

from pathlib import Path

import pytest

from query_engine.engine import WorkerSettings
from query_engine.remote import RemoteAnswers
from tests import rooms as product
from tests.rooms import Rooms, rows


def workers_of(rooms: Rooms) -> list[int]:
    assert isinstance(rooms.engine._answers, RemoteAnswers)
    return rooms.engine._answers.pool.pids


def test_the_first_rows_of_a_tenant_cost_it_no_worker(
    database_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "WORKERS", WorkerSettings(workers=2))
    with product.open_rooms(database_dsn, tmp_path) as rooms:
        assert rooms.query("SELECT 0 + 1 AS one").to_pylist() == [{"one": 1}]
        bound = workers_of(rooms)
        receipt = rooms.write("t", rows(1, 2, 3))
        rooms.publish_all()
        seen = rooms.query("SELECT sum(v)::int AS v FROM t", min_token=receipt.visibility_token)
        assert seen.to_pylist() == [{"v": 6}]
        assert workers_of(rooms) == bound
