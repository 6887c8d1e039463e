"""API keys as a serving process knows them: guesses, revocations, last use."""

from collections.abc import Iterator

import pytest

from catalog import tenants
from catalog.connection import Catalog
from duckmesh.errors import Denied, ErrorCode, Overloaded
from duckmesh.identifiers import KeyId
from gateway import tenancy
from gateway.guesses import Guesses
from gateway.known_keys import KnownKeys
from gateway.tenancy import Tenancy
from tests.processes import until


class Clock:
    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def catalog(database_dsn: str) -> Iterator[Catalog]:
    with Catalog(database_dsn) as opened:
        tenancy.ensure_tenant(opened, "acme", principal="test")
        yield opened


@pytest.fixture
def other_process(database_dsn: str) -> Iterator[Catalog]:
    with Catalog(database_dsn) as opened:
        yield opened


def new_key(catalog: Catalog) -> tuple[KeyId, str]:
    return tenancy.create_key(catalog, "acme", name="ci", roles=["query_reader"])


def wrong(secret: str) -> str:
    """Another secret of the same key."""
    return secret[:-1] + ("A" if secret[-1] != "A" else "B")


def test_guessing_is_slowed_down_and_locks_nobody_out(catalog: Catalog) -> None:
    (_, secret), (_, others) = new_key(catalog), new_key(catalog)
    doors = Tenancy(catalog)
    for _ in range(10):
        with pytest.raises(Denied) as refused:
            doors.authenticate_api_key(wrong(secret), "10.0.0.1")
        assert refused.value.code is ErrorCode.UNAUTHORIZED
    with pytest.raises(Overloaded) as limited:
        doors.authenticate_api_key(wrong(secret), "10.0.0.1")
    assert limited.value.code is ErrorCode.RATE_LIMITED
    assert 0 < limited.value.context["retry_after_ms"] <= 60_000
    assert 0 < limited.value.context["retry_after_seconds"] <= 60
    assert secret[3:15] not in str(limited.value)
    for source in ("10.0.0.1", "10.0.0.2"):
        assert doors.authenticate_api_key(secret, source).principal == "ci"
        assert doors.authenticate_api_key(others, source).principal == "ci"
    with pytest.raises(Denied):
        doors.authenticate_api_key(wrong(secret), "10.0.0.2")


def test_an_unknown_key_is_refused_as_a_wrong_secret_is(catalog: Catalog) -> None:
    _, secret = new_key(catalog)
    doors = Tenancy(catalog)
    unknown = secret.replace(secret[3:15], "0" * 12)
    messages = set()
    for shown in (wrong(secret), unknown, "dm_", "x", ""):
        with pytest.raises(Denied) as refused:
            doors.authenticate_api_key(shown)
        messages.add(str(refused.value))
    assert len(messages) == 1


def test_a_guesser_waits_for_the_window_and_may_err_again_after_it() -> None:
    clock = Clock()
    guesses = Guesses(monotonic=clock)
    for _ in range(10):
        guesses.wrong("a", "k")
    with pytest.raises(Overloaded) as limited:
        guesses.wrong("a", "k")
    assert limited.value.context["retry_after_seconds"] == 60
    guesses.wrong("b", "k")
    guesses.wrong("a", "other")
    clock.seconds += 61
    guesses.wrong("a", "k")


def test_guesses_of_a_million_keys_take_the_memory_of_ten_thousand() -> None:
    guesses = Guesses(monotonic=Clock())
    for n in range(30_000):
        guesses.wrong(str(n), "k")
    assert len(guesses._counts) == 10_000


def test_a_revocation_is_heard_before_what_is_known_has_aged(
    catalog: Catalog, other_process: Catalog
) -> None:
    key_id, secret = new_key(catalog)
    clock = Clock()
    keys = KnownKeys(catalog, monotonic=clock)
    assert keys.holder_of(secret, source="") is not None
    heard: list[str] = []
    catalog.subscribe("duckmesh_credentials", heard.append)
    until(lambda: bool(heard))
    heard.clear()
    assert keys.live(key_id) is not None
    tenancy.revoke_key(other_process, "acme", key_id)
    # The clock stands still: only the notification can tell.
    until(lambda: bool(heard))
    assert keys.live(key_id) is None
    assert keys.holder_of(secret, source="") is None


def test_a_revocation_whose_notification_is_lost_is_found_within_a_second(
    catalog: Catalog,
) -> None:
    key_id, _ = new_key(catalog)
    clock = Clock()
    keys = KnownKeys(catalog, monotonic=clock)
    keys._subscribed = True
    assert keys.live(key_id) is not None
    tenancy.revoke_key(catalog, "acme", key_id)
    assert keys.live(key_id) is not None
    clock.seconds += 1
    assert keys.live(key_id) is None


def test_a_list_of_keys_tells_when_each_was_last_used(catalog: Catalog) -> None:
    key_id, secret = new_key(catalog)
    unused, _ = new_key(catalog)
    Tenancy(catalog).authenticate_api_key(secret)

    def last_use() -> dict[KeyId, bool]:
        return {k.key_id: k.last_used_at is not None for k in tenancy.list_keys(catalog, "acme")}

    until(lambda: last_use()[key_id])
    assert not last_use()[unused]


def test_a_rotated_key_ends_and_its_successor_may_do_the_same(catalog: Catalog) -> None:
    key_id, secret = new_key(catalog)
    new_id, new_secret = tenancy.rotate_key(catalog, "acme", key_id)
    assert new_id != key_id
    doors = Tenancy(catalog)
    with pytest.raises(Denied):
        doors.authenticate_api_key(secret)
    assert doors.authenticate_api_key(new_secret).roles == {"query_reader"}
    with catalog.connect() as connection:
        assert tenants.find_holder(connection, key_id) is None
