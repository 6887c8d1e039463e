"""Flight's RPCs as raw bytes over gRPC: what no client library would send, too."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import grpc
import pyarrow as pa

SERVICE = "/arrow.flight.protocol.FlightService/"
UNARY = ("GetFlightInfo", "GetSchema", "PollFlightInfo")
ANSWERED_BY_A_STREAM = ("ListFlights", "DoGet", "DoAction", "ListActions")
STREAMS = ("Handshake", "DoPut", "DoExchange")

Headers = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True)
class Reply:
    """How a call ended: its gRPC status by name, its text, its trailers, and its messages."""

    status: str
    text: str
    trailers: dict[str, str | bytes]
    messages: list[bytes]


class RawFlight:
    """Sends bytes to one server, and never raises for what the server answers."""

    def __init__(self, address: str, *, seconds: float = 20) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(address, options)
        self._seconds = seconds

    def call(self, rpc: str, requests: Iterable[bytes], headers: Headers = ()) -> Reply:
        """The reply to one call; DEADLINE_EXCEEDED without a text of ours means that it hung."""
        messages: list[bytes] = []
        path = SERVICE + rpc
        requests = list(requests)
        try:
            if rpc in UNARY:
                call = self._channel.unary_unary(path).future(
                    requests[0], timeout=self._seconds, metadata=list(headers)
                )
                messages.append(call.result())
            elif rpc in ANSWERED_BY_A_STREAM:
                call = self._channel.unary_stream(path)(
                    requests[0], timeout=self._seconds, metadata=list(headers)
                )
                messages.extend(call)
            else:
                call = self._channel.stream_stream(path)(
                    iter(requests), timeout=self._seconds, metadata=list(headers)
                )
                messages.extend(call)
        except grpc.RpcError as error:
            trailers = {each.key: each.value for each in error.trailing_metadata() or ()}
            return Reply(error.code().name, error.details() or "", trailers, messages)
        return Reply("OK", "", {}, messages)

    def close(self) -> None:
        self._channel.close()


# ---- The messages of Flight.proto, by field number


def field(number: int, value: bytes) -> bytes:
    """One length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def command_descriptor(command: bytes) -> bytes:
    return b"\x08\x02" + field(2, command)


def path_descriptor(*path: bytes) -> bytes:
    return b"\x08\x01" + b"".join(field(3, part) for part in path)


def ticket(value: bytes) -> bytes:
    return field(1, value)


def action(kind: bytes, body: bytes) -> bytes:
    return field(1, kind) + field(2, body)


def flight_data(
    message: bytes, *, descriptor: bytes | None = None, metadata: bytes | None = None
) -> bytes:
    """FlightData of one encapsulated IPC message."""
    header, body = _cut(message)
    return (
        (b"" if descriptor is None else field(1, descriptor))
        + field(2, header)
        + (b"" if metadata is None else field(3, metadata))
        + field(1000, body)
    )


def ipc_messages(table: pa.Table) -> list[bytes]:
    """The schema and the batches of a table as encapsulated IPC messages."""
    schema = table.schema.serialize().to_pybytes()
    return [schema, *(batch.serialize().to_pybytes() for batch in table.to_batches())]


def stream_opening(schema: pa.Schema, table: str, *, body: bytes = b"") -> bytes:
    """The first message of a stream by path; a `body` is more than it should have."""
    message = schema.serialize().to_pybytes() + body
    return flight_data(message, descriptor=path_descriptor(table.encode()))


def batch_message(batch: pa.RecordBatch, *, metadata: bytes | None = None) -> bytes:
    """The message of one batch of a stream."""
    return flight_data(batch.serialize().to_pybytes(), metadata=metadata)


def _cut(message: bytes) -> tuple[bytes, bytes]:
    (size,) = struct.unpack_from("<i", message, 4)
    return message[8 : 8 + size], message[8 + size :]
