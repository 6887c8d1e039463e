"""Which descriptors are ready: epoll where the system has it, else what `selectors` finds.

`selectors` alone would do. Every small write passes here several times, and over epoll it costs a
third of what the module costs. One thread waits, all may change what is waited for.
"""

import select
import selectors
import sys
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

READ: Final = selectors.EVENT_READ
WRITE: Final = selectors.EVENT_WRITE

Act: TypeAlias = Callable[[int], None]
"""Called with READ, WRITE or both; with both when the other side has gone or failed."""

_AT_ONCE_MAX: Final = 256


class Poller(Protocol):
    """What is waited for, and what is to be done then."""

    def register(self, descriptor: int, events: int, act: Act) -> None:
        """Wait for it, until `unregister`. Raises OSError, ValueError."""

    def modify(self, descriptor: int, events: int) -> None:
        """Wait for something else of it."""

    def unregister(self, descriptor: int) -> None:
        """Comes before the descriptor is closed."""

    def once(self, descriptor: int, act: Act) -> None:
        """Wait until it can be read, one time. It may be closed meanwhile, and is forgotten then.

        Raises OSError, ValueError: then it is not waited for.
        """

    def wait(self, seconds: float | None) -> list[tuple[Act, int]]:
        """What is to be done now, each with the events; empty when the time is over. Blocks."""

    def close(self) -> None: ...


class Portable:
    """Of what every system has."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def register(self, descriptor: int, events: int, act: Act) -> None:
        self._selector.register(descriptor, events, act)

    def modify(self, descriptor: int, events: int) -> None:
        self._selector.modify(descriptor, events, self._selector.get_key(descriptor).data)

    def unregister(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)

    def once(self, descriptor: int, act: Act) -> None:
        def forget_and_act(events: int) -> None:
            self._selector.unregister(descriptor)
            act(events)

        self._selector.register(descriptor, READ, forget_and_act)

    def wait(self, seconds: float | None) -> list[tuple[Act, int]]:
        return [(key.data, events) for key, events in self._selector.select(seconds)]

    def close(self) -> None:
        self._selector.close()


if sys.platform == "linux":
    _IN: Final = select.EPOLLIN
    _OUT: Final = select.EPOLLOUT
    _ONCE: Final = select.EPOLLIN | select.EPOLLONESHOT
    _MASKS: Final = {READ: _IN, WRITE: _OUT, READ | WRITE: _IN | _OUT}
    _ALL: Final = _IN | _OUT | select.EPOLLPRI | select.EPOLLERR | select.EPOLLHUP
    # Whatever is neither is both: the other side has gone or failed.
    _EVENTS: Final = [
        (READ if mask & ~_OUT else 0) | (WRITE if mask & ~_IN else 0) for mask in range(_ALL + 1)
    ]

    class Epoll:
        """Of Linux."""

        def __init__(self) -> None:
            self._epoll = select.epoll()
            self._acts: dict[int, Act] = {}

        def register(self, descriptor: int, events: int, act: Act) -> None:
            self._acts[descriptor] = act
            self._epoll.register(descriptor, _MASKS[events])

        def modify(self, descriptor: int, events: int) -> None:
            self._epoll.modify(descriptor, _MASKS[events])

        def unregister(self, descriptor: int) -> None:
            del self._acts[descriptor]
            self._epoll.unregister(descriptor)

        def once(self, descriptor: int, act: Act) -> None:
            # The system keeps it, at rest, between one time and the next; and forgets it when it
            # is closed: what has its number after that is asked for anew.
            self._acts[descriptor] = act
            try:
                self._epoll.modify(descriptor, _ONCE)
            except FileNotFoundError:
                self._epoll.register(descriptor, _ONCE)

        def wait(self, seconds: float | None) -> list[tuple[Act, int]]:
            acts = self._acts
            ready = []
            for descriptor, mask in self._epoll.poll(seconds, _AT_ONCE_MAX):
                act = acts.get(descriptor)
                # None: another thread has just unregistered it.
                if act is not None:
                    ready.append((act, _EVENTS[mask & _ALL]))
            return ready

        def close(self) -> None:
            self._epoll.close()


def best_poller() -> Poller:
    """The quickest of this system."""
    return Epoll() if sys.platform == "linux" else Portable()
