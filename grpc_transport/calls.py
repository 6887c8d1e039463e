"""One call: what came of it, and what is answered. The two sides of it meet under one lock.

The thread that moves bytes brings messages in, and takes out what the windows of the client let
through. A handler is on that thread too (`follow`), and never blocks, or on one of its own, where
`read` and `send` block.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from grpc_transport.header_blocks import Headers, Request
from grpc_transport.messages import MESSAGE_MAX_BYTES, Assembly, Message
from grpc_transport.status import Status

if TYPE_CHECKING:
    from grpc_transport.connection import Connection

MET_BYTES: Final = 2**20
"""So much of a call comes, and who sends it should be known."""

Part: TypeAlias = bytes | memoryview
Field: TypeAlias = tuple[str, str | bytes]


class Gone(Exception):
    """The caller has left, or its time is over: nobody waits for an answer."""


class Call:
    """One call of a client's. `finish` ends it; nothing is sent after that.

    What stands under `Of the connection` is read and changed under its lock alone.
    """

    __slots__ = (
        "allowance",
        "arrived",
        "assembly",
        "begun_at",
        "cancelled",
        "connection",
        "content_left",
        "deadline",
        "due",
        "ended",
        "follower",
        "half_closed",
        "has_spoken",
        "head_sent",
        "headers_out",
        "held_bytes",
        "inbox",
        "inbox_bytes",
        "is_let_in",
        "on_cancelled",
        "pending",
        "pending_bytes",
        "pending_end",
        "request",
        "state",
        "stream_id",
        "told",
        "window",
    )

    def __init__(
        self,
        connection: "Connection",
        stream_id: int,
        request: Request,
        *,
        window: int,
        allowance: int,
        begun_at: float,
    ) -> None:
        self.request = request
        self.connection = connection
        self.begun_at = begun_at
        self.deadline: float | None = None
        """When it is given up, by time.monotonic."""
        self.state: object = None
        """The service's own."""
        self.headers_out: dict[str, str] = {}
        # ---- Of the connection
        self.stream_id = stream_id
        self.window = window
        """How many bytes the client takes."""
        self.allowance = allowance
        """How many bytes it may send."""
        self.due = 0
        """How many of those that came it has not been given back."""
        self.is_let_in = False
        self.held_bytes = 0
        """What came before it was let in."""
        self.has_spoken = False
        """One of its messages was whole."""
        self.content_left = request.content_length
        self.assembly = Assembly(request.encoding)
        self.inbox: deque[Message] = deque()
        self.inbox_bytes = 0
        self.arrived: threading.Condition | None = None
        self.follower: Callable[[], None] | None = None
        self.told = False
        """The follower is about to be called."""
        self.half_closed = False
        """The client sends nothing more."""
        self.cancelled = False
        self.ended = False
        self.head_sent = False
        self.pending: deque[Part] = deque()
        self.pending_bytes = 0
        self.pending_end: bytes | None = None
        self.on_cancelled: list[Callable[[], None]] = []

    # ---- What came

    @property
    def path(self) -> str:
        return self.request.path

    @property
    def headers(self) -> Headers:
        return self.request.headers

    @property
    def is_to_be_met(self) -> bool:
        """Whether there is something to go by: a message, the end, or much of a large message.

        Of a large one no more comes before the call is let in.
        """
        return self.has_spoken or self.half_closed or self.held_bytes > MET_BYTES

    def let_in(self, message_max_bytes: int = MESSAGE_MAX_BYTES) -> None:
        """Its caller is known: what it sends is bounded by its own windows from now on.

        Before that little of it is kept, and little of all such calls of its connection. A larger
        message than `message_max_bytes` ends the call.
        """
        self.connection.let_in(self, message_max_bytes)

    def read(self) -> Message | None:
        """The next message; None when the client sends no more. Blocks until either is known.

        Raises Gone when the caller leaves.
        """
        return self.connection.read(self)

    def take(self) -> Message | None:
        """The next message if it is here. Never blocks, and raises nothing."""
        return self.connection.take(self)

    def put_back(self, messages: Sequence[Message]) -> None:
        """Have these read again, before what has come since."""
        self.connection.put_back(self, messages)

    @property
    def is_cancelled(self) -> bool:
        """Whether the caller has left."""
        return self.cancelled

    @property
    def is_complete(self) -> bool:
        """Whether everything that the client sends was taken."""
        return self.half_closed and not self.inbox

    def follow(self, follower: Callable[[], None] | None) -> None:
        """Call `follower` on the thread that moves bytes, when something has come. Only there."""
        self.follower = follower

    def tell(self) -> None:
        """Let the follower of now look at what has come."""
        self.told = False
        if self.follower is not None:
            self.follower()

    def on_cancel(self, act: Callable[[], None]) -> None:
        """Run `act` once when the caller leaves, or has left: it must not block."""
        if not self.connection.watch(self, act):
            act()

    # ---- What is answered

    def set_header(self, name: str, value: str) -> None:
        """A header of the answer, in the place of one of its name. Comes before `send`."""
        self.headers_out[name] = value

    def send(self, parts: Sequence[Part], *, more: bool = False) -> None:
        """Send one message. Blocks while the client takes less than it is sent.

        With `more` it may wait for what follows at once. Raises Gone when the caller leaves.
        """
        self.connection.send(self, parts, more=more, waits=True)

    def post(self, parts: Sequence[Part], *, more: bool = False) -> None:
        """Send one message without ever blocking. What is to be sent is bounded by who calls.

        Nothing happens when the caller has left. With `more` it waits for `flush` or `finish`.
        """
        self.connection.send(self, parts, more=more, waits=False)

    def flush(self) -> None:
        """Let go out what was sent."""
        self.connection.flush()

    def finish(
        self, status: Status = Status.OK, why: str = "", trailers: Iterable[Field] = ()
    ) -> None:
        """End the call, behind what was sent. Never blocks. Again does nothing."""
        self.connection.finish(self, status, why, trailers)

    def cancel(self) -> None:
        """Act as if the caller had left."""
        self.connection.cancel(self)
