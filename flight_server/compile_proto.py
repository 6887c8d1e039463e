"""`python -m flight_server.compile_proto` compiles the `.proto` files here to a descriptor set.

`flight_sql.binpb`, and not generated Python: it needs no matching protobuf release at run time, and
a private pool keeps it from clashing with a client library in the same process. protoc comes from
grpcio-tools, which only developers install.
"""

import sys
import tempfile
from importlib import import_module, resources
from pathlib import Path
from typing import Final

SOURCES: Final = (
    "flight_sql.proto",
    "flight_session.proto",
    "flight_data.proto",
    "flight_status.proto",
    "sealed.proto",
)
ROOM: Final = Path(__file__).parent
TARGET: Final = ROOM / "flight_sql.binpb"


def compile_descriptors() -> bytes:
    """The serialized FileDescriptorSet of the sources and their imports. Writes nothing."""
    protoc = import_module("grpc_tools.protoc")
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "set.binpb"
        status = protoc.main(
            [
                "protoc",
                f"--proto_path={ROOM}",
                f"--proto_path={resources.files('grpc_tools') / '_proto'}",
                f"--descriptor_set_out={output}",
                "--include_imports",
                *SOURCES,
            ]
        )
        if status != 0:
            raise SystemExit(status)
        return output.read_bytes()


def main() -> None:
    TARGET.write_bytes(compile_descriptors())
    sys.stdout.write(f"wrote {TARGET.name}\n")


if __name__ == "__main__":
    main()
