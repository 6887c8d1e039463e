"""A small real Flight server and real drivers, for what only a wire can show."""

import time
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import pytest

from duckmesh.errors import Denied, ErrorCode
from duckmesh.identifiers import KeyId, TenantId
from duckmesh.threads import Threads
from flight_server.server import DoorOptions, FlightDoor
from flight_server.tickets import Seal
from gateway.identity import EVERY_ROLE, Identity
from grpc_transport.server import GrpcServer
from query_engine.engine import QueryEngine
from tests.flight_server.small_house import SmallHouse
from tests.rooms import WORKERS

ADA = Identity(TenantId(1), "acme", "ada", KeyId("k-ada"), EVERY_ROLE)
ANYBODY = Identity(TenantId(2), "default", "anonymous", None, EVERY_ROLE)


class KnownKeys:
    """An Authenticator over a dictionary, with an open door or without."""

    def __init__(self, keys, open_identity=None):
        self.keys = dict(keys)
        self.anonymous = open_identity

    def authenticate_api_key(self, secret, source=""):  # noqa: ARG002
        if secret not in self.keys:
            raise Denied(ErrorCode.UNAUTHORIZED, "the API key is not known")
        return self.keys[secret]

    def open_identity(self):
        return self.anonymous

    def recall_api_key(self, secret):
        return self.keys.get(secret)

    def recall_open_identity(self):
        return self.anonymous

    def check_live(self, identity):
        if identity.key_id is not None and identity not in self.keys.values():
            raise Denied(ErrorCode.UNAUTHORIZED, "the API key was revoked: connect with another")


@pytest.fixture
def ada():
    return ADA


@pytest.fixture
def anybody():
    return ANYBODY


@pytest.fixture
def known_keys():
    return KnownKeys


@pytest.fixture
def running():
    """Serve calls by a function of one, each on a thread of its own, until the block ends."""

    @contextmanager
    def start(answer):
        threads = Threads("answering")
        server = GrpcServer(lambda rpc: threads.run(partial(answer, rpc)), host="127.0.0.1", port=0)
        server.start()
        try:
            yield f"grpc://127.0.0.1:{server.port}"
        finally:
            server.close()
            threads.close()

    return start


@pytest.fixture
def house(tmp_path):
    with QueryEngine(
        threads=2, memory_limit_bytes=512 * 2**20, temp_directory=None, workers=WORKERS
    ) as engine:
        yield SmallHouse(tmp_path, engine)


@pytest.fixture
def open_door(house):
    """A function that opens a door over the house; every door is drained and closed in the end."""
    opened = []

    def start(keys=None, anonymous=ANYBODY, now=time.time, authenticator=None, **options):
        door = FlightDoor(
            DoorOptions(**options),
            reads=house,
            writes=house,
            sessions=house.sessions,
            sql_writes=house,
            transactions=house.transactions,
            authenticator=authenticator or KnownKeys(keys or {}, anonymous),
            seal=Seal(b"s" * 32, now=now),
        )
        opened.append(door)
        return door

    yield start
    for door in opened:
        assert door.drain(timedelta(seconds=5)), "a call did not end"
        door.close()


@pytest.fixture
def door(open_door):
    return open_door()


@pytest.fixture
def uri(door):
    return f"grpc://127.0.0.1:{door.port}"
