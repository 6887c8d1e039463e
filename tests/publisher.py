"""A coordinator's loop on a thread: what is accepted becomes visible while a test goes on."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from tests.rooms import Rooms


@contextmanager
def publishing(rooms: Rooms) -> Iterator[None]:
    """Publish whatever comes, for the length of the block."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def publish() -> None:
        materializer = rooms.materializer()
        try:
            while not stop.is_set():
                if materializer.publish_next() is None:
                    rooms.bus.wait_for_work(timedelta(milliseconds=200))
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=publish, name="publisher")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        rooms.bus.wake()
        thread.join(timeout=30)
        assert not thread.is_alive()
        assert failures == []
