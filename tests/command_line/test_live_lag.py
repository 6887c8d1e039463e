"""The lag on a metrics page: of all tenants, and by name of a bounded number of them."""

from pathlib import Path

from command_line.live_lag import LiveLag
from tests.rooms import open_rooms, rows


def test_the_tenants_furthest_behind_are_named_up_to_the_cap(
    database_dsn: str, tmp_path: Path
) -> None:
    with open_rooms(database_dsn, tmp_path) as rooms:
        rooms.write("t", rows(1, 2))
        rooms.write("t", rows(3))
        rooms.write("t", rows(4), identity=rooms.identity("beta"))

        def told(tenants_max: int) -> dict[tuple[str, str], float]:
            lag = LiveLag(rooms.catalog, rooms.bus, tenants_max=tenants_max)
            return {
                (sample.name, sample.labels.get("tenant", "")): sample.value
                for metric in lag.metrics()
                for sample in metric.samples
            }

        found = told(1)
        events = "duckmesh_tenant_ingest_lag_events"
        assert found["duckmesh_ingest_lag_events", ""] == 3
        assert {key: v for key, v in found.items() if key[0] == events} == {(events, "acme"): 2}
        assert (
            found["duckmesh_tenant_visibility_lag", "acme"] == found["duckmesh_visibility_lag", ""]
        )
        assert not [name for name, tenant in told(0) if tenant]
        assert told(2)[events, "beta"] == 1
