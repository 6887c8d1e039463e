"""Small requests to write records: answered on the event loop, with every check."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from duckmesh.errors import Conflict, ErrorCode
from duckmesh.identifiers import new_event_id
from duckmesh.tokens import VisibilityToken
from gateway import tenancy
from gateway.identity import Role
from http_shim.small_ingest import Arrivals, Watched
from ingest_bus.acceptance import Acceptance
from ingest_bus.envelope import Receipt
from tests.http_shim.conftest import OpenHttp
from tests.processes import until
from tests.rooms import Rooms, rows


def body(number: int, key: str | None = None) -> dict[str, object]:
    record = {"payload": {"v": number}, "idempotency_key": key}
    return {"records": [record]}


def test_many_callers_at_once_get_each_their_token(http: httpx.Client, rooms: Rooms) -> None:
    rooms.write("t", rows(0))

    def write(caller: int) -> list[int]:
        with httpx.Client(base_url=http.base_url, timeout=60) as client:
            answers = [
                client.post("/v1/ingest/t", json=body(n, f"{caller}-{n}")) for n in (1, 2, 3, 3)
            ]
        assert [a.json()["duplicate_count"] for a in answers] == [0, 0, 0, 1]
        return [a.json()["max_visibility_token"] for a in answers]

    with ThreadPoolExecutor(8) as callers:
        tokens = list(callers.map(write, range(8)))
    assert all(third == repeat for _, _, third, repeat in tokens)
    assert sorted(token for each in tokens for token in each[:3]) == list(range(2, 26))
    rooms.publish_all()
    assert rooms.query("SELECT count(*) FROM t").column(0).to_pylist() == [25]


def test_a_revoked_key_is_refused(open_http: OpenHttp, rooms: Rooms) -> None:
    rooms.write("t", rows(0))
    key_id, secret = tenancy.create_key(rooms.catalog, "acme", name="w", roles=[Role.INGEST_WRITER])
    with httpx.Client(base_url=open_http(open_tenant=None).uri, timeout=30) as client:

        def status(shown: str) -> int:
            headers = {"x-api-key": shown}
            return client.post("/v1/ingest/t", json=body(1), headers=headers).status_code

        assert [status(secret) for _ in range(5)] == [200] * 5
        assert status(secret[:-4] + "AAAA") == 401
        both = {"x-api-key": secret, "authorization": "Bearer other"}
        assert client.post("/v1/ingest/t", json=body(1), headers=both).status_code == 401
        tenancy.revoke_key(rooms.catalog, "acme", key_id)
        until(lambda: status(secret) == 401, seconds=10)


@pytest.mark.parametrize(
    ("headers", "path"),
    [
        ({"idempotency-key": "k"}, "/v1/ingest/t"),
        ({"content-encoding": "br"}, "/v1/ingest/t"),
        ({"content-type": "text/plain"}, "/v1/ingest/t"),
        ({}, "/v1/ingest/t/more"),
        ({}, "/v1/ingest/"),
        ({}, "/v1/ingest/t?mode=create"),
        ({}, "/v1/ingest/t?visibility_timeout_ms=x"),
    ],
)
def test_what_is_no_small_request_is_judged_by_its_route(http, rooms, headers, path) -> None:
    rooms.write("t", rows(0))
    answer = http.post(path, json=body(1), headers={"content-type": "application/json"} | headers)
    assert answer.status_code in {400, 404, 415, 501}
    assert "error_code" in answer.json()
    assert rooms.bus.backlog(rooms.identity("acme").tenant_id).events == 1


def test_acceptances_that_other_threads_end_are_awaited() -> None:
    arrivals, count = Arrivals(), 200
    acceptances = [Acceptance() for _ in range(count)]
    event = new_event_id()

    def complete(first: int) -> None:
        for number in range(first, count, 4):
            if number % 10 == 9:
                acceptances[number].fail(Conflict(ErrorCode.TABLE_EXISTS, str(number)))
            else:
                acceptances[number].answer([Receipt(event, VisibilityToken(number), 1)])
            if number % 3 == 0:
                arrivals.settled()
        arrivals.settled()

    async def wait() -> list[list[Receipt] | BaseException]:
        waiting = [asyncio.create_task(arrivals.of(each)) for each in acceptances]
        left_early = waiting[0]
        await asyncio.sleep(0)
        left_early.cancel()
        threads = [threading.Thread(target=complete, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        for thread in threads:
            thread.join()
        return found

    first, *others = asyncio.run(wait())
    assert isinstance(first, asyncio.CancelledError)
    for number, found in enumerate(others, 1):
        if number % 10 == 9:
            assert isinstance(found, Conflict)
            assert str(found) == str(number)
        else:
            assert found == [Receipt(event, VisibilityToken(number), 1)]


def test_what_could_not_be_watched_is_not_called_when_the_loop_ends() -> None:
    """Whoever asked waits elsewhere then, and the connection has gone back."""
    watched = Watched()
    called: list[str] = []

    async def run() -> int:
        with pytest.raises((ValueError, OSError)):
            watched.watch(-1, lambda: called.append("not watched"))
        read, write = os.pipe()
        assert watched.watch(read, lambda: called.append("watched"))
        os.close(write)
        return read

    read = asyncio.run(run())
    watched.close()
    os.close(read)
    assert called == ["watched"]
