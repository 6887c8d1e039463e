"""The protobuf message classes of Flight SQL, in a descriptor pool of their own.

The default pool is left alone: a client library that brings its own Flight SQL messages may live
in the same process. The wire names are the specification's.
"""

from importlib import resources
from typing import Any, Final

# protobuf ships no types.
from google.protobuf import any_pb2, descriptor_pb2  # type: ignore[import-untyped]
from google.protobuf.descriptor_pool import DescriptorPool  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from google.protobuf.message_factory import GetMessageClass  # type: ignore[import-untyped]

SQL_PACKAGE: Final = "arrow.flight.protocol.sql"
SESSION_PACKAGE: Final = "arrow.flight.protocol"
SEALED_PACKAGE: Final = "duckmesh.sealed"
TYPE_URL_PREFIX: Final = f"type.googleapis.com/{SQL_PACKAGE}."

__all__ = [
    "TYPE_URL_PREFIX",
    "DecodeError",
    "Message",
    "any_of",
    "message_class",
    "sealed",
    "session",
    "sql",
    "status",
    "wrap",
]


def _load_pool() -> DescriptorPool:
    files = descriptor_pb2.FileDescriptorSet()
    files.ParseFromString(resources.files(__package__).joinpath("flight_sql.binpb").read_bytes())
    pool = DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return pool


_pool: Final = _load_pool()
_classes: Final[dict[str, Any]] = {}


def message_class(full_name: str) -> Any:
    """The class of a message by its full name. Raises KeyError when the pool has none."""
    # Two threads may both build the class: the factory returns the same one to each.
    if full_name not in _classes:
        _classes[full_name] = GetMessageClass(_pool.FindMessageTypeByName(full_name))
    return _classes[full_name]


def sql(name: str) -> Any:
    """A message class of the Flight SQL specification."""
    return message_class(f"{SQL_PACKAGE}.{name}")


def session(name: str) -> Any:
    """A message class of the Flight RPC specification that is its own, and not of Flight SQL."""
    return message_class(f"{SESSION_PACKAGE}.{name}")


def sealed(name: str) -> Any:
    """A message class of what DuckMesh seals."""
    return message_class(f"{SEALED_PACKAGE}.{name}")


def status() -> Any:
    """The class google.rpc.Status."""
    return message_class("google.rpc.Status")


def any_of(data: bytes) -> tuple[str, bytes]:
    """Type URL and value of a serialized Any. Raises DecodeError when it is none."""
    wrapped = any_pb2.Any()
    wrapped.ParseFromString(data)
    return wrapped.type_url, wrapped.value


def wrap(message: Message) -> bytes:
    """`message` in a serialized Any, under the type URL that the specification's clients expect."""
    url = f"type.googleapis.com/{message.DESCRIPTOR.full_name}"
    wrapped = any_pb2.Any(type_url=url, value=message.SerializeToString())
    return bytes(wrapped.SerializeToString())
