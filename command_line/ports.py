"""Whether the door can open where the settings say."""

import socket

from duckmesh.errors import Conflict, ErrorCode, Invalid
from duckmesh.settings import FlightSettings


def check_port_is_free(group: FlightSettings) -> None:
    """Raise Conflict when another process listens there, Invalid when the host is not ours."""
    try:
        found = socket.getaddrinfo(group.host, group.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as attempt:
            # As the server does: connections of a predecessor that still fade are no obstacle.
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            attempt.bind(address)
    except PermissionError as error:
        raise Invalid(
            ErrorCode.SETTINGS_INVALID,
            f"port {group.port} needs rights that this process lacks: set flight.port (--port) "
            "to 1024 or more",
        ) from error
    except socket.gaierror as error:
        raise Invalid(
            ErrorCode.SETTINGS_INVALID,
            f"flight.host {group.host!r} is no address of this machine: correct it",
        ) from error
    except OSError as error:
        raise Conflict(
            ErrorCode.SETTINGS_INVALID,
            f"port {group.port} of {group.host} cannot be listened on: end what listens there, "
            "or set flight.port (--port); 0 takes a free one",
        ) from error
