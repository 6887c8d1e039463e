"""A thread state that is held stays one through many entries, and is let go where it was taken."""

import threading

import pyarrow as pa
from pyarrow import flight

from flight_server.thread_state import HeldThreadState

ROWS = pa.table({"n": [1]})


class Marks(threading.local):
    """Dies with the thread state that made it."""

    kept = False


class Middleware(flight.ServerMiddleware):
    def __init__(self, holds: bool) -> None:
        super().__init__()
        self.state = HeldThreadState() if holds else None

    def call_completed(self, *_: object) -> None:
        if self.state is not None:
            self.state.release()
            self.state.release()


class Factory(flight.ServerMiddlewareFactory):
    def __init__(self, marks: Marks, holds: bool) -> None:
        super().__init__()
        self._marks, self._holds = marks, holds

    def start_call(self, *_: object) -> Middleware:
        self._marks.kept = True
        return Middleware(self._holds)


class Server(flight.FlightServerBase):
    def __init__(self, holds: bool) -> None:
        self.marks = Marks()
        self.seen: list[bool] = []
        super().__init__("grpc://127.0.0.1:0", middleware={"m": Factory(self.marks, holds)})

    def do_get(self, *_: object) -> flight.RecordBatchStream:
        self.seen.append(self.marks.kept)
        self.marks.kept = False
        return flight.RecordBatchStream(ROWS)


def seen_by_calls(holds: bool) -> list[bool]:
    with Server(holds) as server, flight.connect(f"grpc://127.0.0.1:{server.port}") as client:
        for _ in range(20):
            assert client.do_get(flight.Ticket(b"")).read_all() == ROWS
        return server.seen


def test_a_held_state_lasts_from_the_start_of_a_call_to_its_end() -> None:
    assert seen_by_calls(holds=True) == [True] * 20


def test_without_it_each_entry_has_another() -> None:
    assert seen_by_calls(holds=False) == [False] * 20


def test_another_thread_does_not_let_it_go() -> None:
    held: list[HeldThreadState] = []
    thread = threading.Thread(target=lambda: held.append(HeldThreadState()))
    # Python ends its own threads whatever they hold.
    thread.start()
    thread.join()
    held[0].release()
    assert threading.current_thread() is threading.main_thread()
