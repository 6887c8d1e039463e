"""Dead letters, pins, tags and restores, over HTTP."""

from datetime import timedelta

import httpx

from duckmesh.identifiers import ConsumerId
from tests.rooms import Rooms, rows


def bury(rooms: Rooms, reason: str = "cannot be read") -> None:
    """Dead-letter everything that waits."""
    lease = timedelta(seconds=30)
    while held := rooms.bus.claim_batch(ConsumerId("c"), limit=100, max_bytes=2**20, lease=lease):
        ids = [event.envelope.event_id for event in held.events]
        rooms.bus.nack(held, ids, reason, dead=True)


def values(http: httpx.Client, **point: object) -> list[int]:
    answer = http.post("/v1/query", json={"sql": "SELECT v FROM t ORDER BY v", **point})
    assert answer.status_code == 200, answer.text
    return [row[0] for row in answer.json()["rows"]]


def newest(http: httpx.Client) -> int:
    return int(http.get("/v1/snapshots", params={"limit": 1}).json()["snapshots"][0]["snapshot_id"])


def test_dead_letters_are_listed_described_and_replayed_once(rooms: Rooms, http) -> None:
    rooms.execute("CREATE TABLE t (v BIGINT)")
    rooms.write("t", rows(1), key="a")
    rooms.write("t", rows(2, 3), key="b")
    bury(rooms)
    found = http.get("/v1/dead-letters", params={"limit": 1}).json()
    assert [each["visibility_token"] for each in found["dead_letters"]] == [1]
    assert found["next_above"] == 1
    (second,) = http.get("/v1/dead-letters", params={"above": 1}).json()["dead_letters"]
    assert (second["table"], second["row_count"], second["reason"]) == ("t", 2, "cannot be read")
    assert (second["idempotency_key"], second["replay_token"]) == ("b", None)
    assert http.get("/v1/dead-letters/2").json() == second

    planned = http.post("/v1/dead-letters/replay", json={"visibility_tokens": [2], "dry_run": True})
    assert planned.json()["replayed"][0]["visibility_token"] is None
    assert rooms.bus.last_token(rooms.acme.tenant_id) == 2
    done = http.post("/v1/dead-letters/replay", json={"visibility_tokens": [2]}).json()
    assert done["replayed"] == [
        {"dead_token": 2, "visibility_token": 3, "row_count": 2, "duplicate": False}
    ]
    again = http.post("/v1/dead-letters/replay", json={"visibility_tokens": [2]}).json()
    assert again["replayed"][0] == done["replayed"][0] | {"duplicate": True}
    rooms.publish_all()
    assert values(http, min_visibility_token=done["max_visibility_token"]) == [2, 3]
    assert http.get("/v1/dead-letters/2").json()["replay_token"] == 3
    assert [d["visibility_token"] for d in http.get("/v1/dead-letters").json()["dead_letters"]] == [
        1
    ]
    listed = http.get("/v1/dead-letters", params={"replayed": True}).json()["dead_letters"]
    assert [each["visibility_token"] for each in listed] == [1, 2]


def test_what_cannot_be_replayed_says_why(rooms: Rooms, http) -> None:
    rooms.execute("CREATE TABLE t (v BIGINT)")
    rooms.execute("CREATE TABLE u (v BIGINT)")
    rooms.write("t", rows(1))
    rooms.write("u", rows(1))
    bury(rooms)
    rooms.execute("DROP TABLE u")
    replay = "/v1/dead-letters/replay"
    gone = http.post(replay, json={"visibility_tokens": [1, 2]})
    assert (gone.status_code, gone.json()["error_code"]) == (404, "TABLE_NOT_FOUND")
    unknown = http.post(replay, json={"visibility_tokens": [3]})
    assert (unknown.status_code, unknown.json()["error_code"]) == (404, "NOT_FOUND")
    for wrong in ([], [0], ["1"], [2**63], list(range(1, 1002))):
        assert http.post(replay, json={"visibility_tokens": wrong}).status_code == 400
    rooms.execute("CREATE OR REPLACE TABLE t AS SELECT 'x' AS word")
    changed = http.post(replay, json={"visibility_tokens": [1]})
    assert changed.status_code in (404, 409), changed.text


def test_a_snapshot_is_read_by_its_tag(rooms: Rooms, http) -> None:
    rooms.write("t", rows(1))
    rooms.publish_all()
    first = newest(http)
    pinned = http.post("/v1/snapshots/pin", json={"snapshot_id": first, "tag": "month-end"})
    assert pinned.status_code == 200, pinned.text
    rooms.write("t", rows(2))
    rooms.publish_all()
    assert values(http) == [1, 2]
    assert values(http, tag="month-end") == [1]
    assert http.get("/v1/snapshots/pins").json()["pins"] == [pinned.json()]
    both = {"sql": "SELECT 1", "tag": "month-end", "snapshot_id": first}
    assert http.post("/v1/query", json=both).json()["error_code"] == "SNAPSHOT_SELECTOR_CONFLICT"
    http.post("/v1/snapshots/pin", json={"snapshot_id": newest(http), "tag": "month-end"})
    assert values(http, tag="month-end") == [1, 2]
    gone = http.post("/v1/snapshots/unpin", json={"tag": "month-end"})
    assert gone.json() == {"snapshot_id": newest(http), "tag": "month-end", "unpinned": True}
    unknown = http.post("/v1/query", json={"sql": "SELECT 1", "tag": "month-end"})
    assert (unknown.status_code, unknown.json()["error_code"]) == (404, "SNAPSHOT_NOT_FOUND")


def test_a_pin_without_a_tag_lasts_as_long_as_asked(rooms: Rooms, http) -> None:
    rooms.write("t", rows(1))
    rooms.publish_all()
    number = newest(http)
    made = http.post("/v1/snapshots/pin", json={"snapshot_id": number, "lasting_ms": 60_000}).json()
    assert (made["tag"], made["snapshot_id"]) == (None, number)
    assert made["expires_at"] > made["created_at"]
    assert http.post("/v1/snapshots/unpin", json={"snapshot_id": number}).status_code == 200
    for wrong in ({}, {"snapshot_id": number, "tag": "x"}, {"tag": "a\x00b"}):
        assert http.post("/v1/snapshots/unpin", json=wrong).status_code == 400
    for wrong in ({"snapshot_id": number, "tag": "7"}, {"snapshot_id": number, "lasting_ms": 0}):
        assert http.post("/v1/snapshots/pin", json=wrong).status_code == 400
    assert http.post("/v1/snapshots/unpin", json={"snapshot_id": number}).status_code == 404


def test_a_tenant_goes_back_to_a_tag(rooms: Rooms, http) -> None:
    rooms.write("t", rows(1))
    rooms.publish_all()
    first = newest(http)
    http.post("/v1/snapshots/pin", json={"snapshot_id": first, "tag": "good"})
    rooms.write("t", rows(2))
    rooms.write("u", rows(2))
    rooms.publish_all()
    planned = http.post("/v1/snapshots/restore", json={"tag": "good", "dry_run": True}).json()
    assert (planned["dry_run"], planned["snapshot_id"]) == (True, None)
    assert (planned["rewound_tables"], planned["ended_tables"]) == (["t"], ["u"])
    assert values(http) == [1, 2]
    done = http.post("/v1/snapshots/restore", json={"tag": "good"}).json()
    assert done["restored_snapshot_id"] == first
    assert done["snapshot_id"] == newest(http) > first
    assert values(http) == [1]
    assert http.get("/v1/tables/u").status_code == 404
    alone = {"snapshot_id": done["snapshot_id"] - 1, "tables": ["u"]}
    assert http.post("/v1/snapshots/restore", json=alone).json()["recreated_tables"] == ["u"]
    for wrong, status in (
        ({}, 400),
        ({"tag": "good", "snapshot_id": first}, 400),
        ({"tag": "good", "tables": []}, 400),
        ({"tag": "nope"}, 404),
        ({"snapshot_id": first, "tables": ["nope"]}, 404),
    ):
        assert http.post("/v1/snapshots/restore", json=wrong).status_code == status


def test_a_restore_waits_for_what_was_accepted(rooms: Rooms, http) -> None:
    rooms.write("t", rows(1))
    rooms.publish_all()
    first = newest(http)
    rooms.write("t", rows(2))
    late = http.post("/v1/snapshots/restore", json={"snapshot_id": first, "timeout_ms": 0})
    assert (late.status_code, late.json()["error_code"]) == (504, "CONSISTENCY_TIMEOUT")
    assert newest(http) == first
