"""The compiled descriptors are those of the .proto files, and the wire is the specification's."""

from google.protobuf import descriptor_pool

from flight_server import messages
from flight_server.compile_proto import TARGET, compile_descriptors


def test_the_compiled_descriptors_are_current():
    assert TARGET.read_bytes() == compile_descriptors(), "run python -m flight_server.compile_proto"


def test_the_default_pool_stays_free_for_a_client_library():
    messages.sql("CommandStatementQuery")
    try:
        descriptor_pool.Default().FindMessageTypeByName(
            "arrow.flight.protocol.sql.CommandStatementQuery"
        )
    except KeyError:
        return
    raise AssertionError("the private messages reached the default pool")


def test_a_wrapped_message_bears_the_type_url_that_clients_expect():
    wrapped = messages.wrap(messages.sql("CommandStatementQuery")(query="select 1"))
    url = b"type.googleapis.com/arrow.flight.protocol.sql.CommandStatementQuery"
    assert wrapped == b"\n" + bytes([len(url)]) + url + b"\x12\x0a\x0a\x08select 1"
