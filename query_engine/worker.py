"""A worker: one process that runs one tenant's queries. `python -m query_engine.worker`.

It starts unbound, so that it can wait ready; the first message of its control socket binds it to
one tenant's directories for the rest of its life. Nothing heavy is imported above `main`: a
network can be left only while there is one thread.
"""

import json
import logging
import os
import pickle
import socket
import sys
from typing import TYPE_CHECKING, Final

from duckmesh.imports import do_without_pandas
from query_engine import sandbox
from query_engine.orders import MESSAGE_MAX_BYTES, ORDER, Binding, Order

if TYPE_CHECKING:
    from query_engine.channels import Channels

_ADDRESS_SPACE_SPARE_BYTES: Final = 512 * 2**20
"""For the stacks of threads, and what DuckDB allocates outside of its own count."""


def main() -> None:
    """Serve until the serving process closes the control socket, or dies."""
    control = socket.socket(fileno=int(sys.argv[1]))
    parent = int(sys.argv[2])
    walls = {"network": sandbox.leave_network()}
    sandbox.yield_to_others()
    walls["privileges"] = sandbox.renounce_privileges() and sandbox.drop_capabilities()
    # Last, for a change of capabilities undoes it.
    sandbox.die_with_parent(parent)
    _log_to_stderr()
    do_without_pandas()

    from query_engine.channels import Channels
    from query_engine.on_use import warm_up

    # Its threads have ended when it returns: the walls bind only this one, and those behind it.
    warm_up()
    # Everything is imported: a query need not wait for this worker. Of walls it tells later.
    control.send(b"{}")
    content = control.recv(MESSAGE_MAX_BYTES)
    if not content:
        os._exit(0)
    # From the process that started this one, over a socket that nobody else has.
    binding: Binding = pickle.loads(content)  # noqa: S301
    space = (
        sandbox.address_space_bytes()
        + binding.memory_limit_bytes * 3 // 2
        + _ADDRESS_SPACE_SPARE_BYTES
    )
    walls["files"] = sandbox.see_only(read=binding.directories, write=[binding.home])
    sandbox.limit_resources(
        address_space_bytes=space, file_bytes=max(binding.temp_limit_bytes, 2**20)
    )
    channels = Channels(binding, address_space_bytes=space)
    control.send(json.dumps(walls).encode())
    _obey(control, channels)
    # The threads that are inside DuckDB would hold an orderly end up.
    os._exit(0)


def _obey(control: socket.socket, channels: "Channels") -> None:
    while True:
        content, descriptors, _, _ = socket.recv_fds(control, MESSAGE_MAX_BYTES, 1)
        if not content:
            return
        order, number = ORDER.unpack(content)
        if order == Order.OPEN:
            channels.open(number, socket.socket(fileno=descriptors[0]))
        else:
            channels.stop(number)


class _Line(logging.Formatter):
    """A record as one line of JSON, as the serving process writes them."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "service": "duckmesh-worker",
            "worker": os.getpid(),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Line())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


if __name__ == "__main__":
    main()
