"""The session's options as Flight's session actions show them.

What is read back is what the session's record says. That is how a plain ADBC client reads the token
of its last write.
"""

from collections.abc import Mapping
from typing import Final

from flight_server import answers
from flight_server.answers import OptionError, OptionValue
from flight_server.authenticate import Call
from flight_server.sessions import Session
from query_engine.relations import CATALOG, MAIN_SCHEMA

LAST_TOKEN: Final = "last_visibility_token"  # noqa: S105 - an option's name
_FIXED: Final = {"catalog": CATALOG, "schema": MAIN_SCHEMA}


def options_of(session: Session) -> dict[str, OptionValue]:
    """Every option of the session."""
    return {
        **_FIXED,
        "tenant": session.identity.tenant,
        "session_id": session.session_id.hex,
        LAST_TOKEN: int(session.last_token),
    }


def refused_options(wanted: Mapping[str, OptionValue]) -> dict[str, OptionError]:
    """Why each option that cannot be set cannot be set.

    Catalog and schema have one value each: to set it, or to erase it, changes nothing.
    """
    refused: dict[str, OptionError] = {}
    for name, value in wanted.items():
        if name in _FIXED:
            if value not in (None, "", _FIXED[name]):
                refused[name] = OptionError.INVALID_VALUE
        elif name in (LAST_TOKEN, "tenant", "session_id"):
            refused[name] = OptionError.ERROR
        else:
            refused[name] = OptionError.INVALID_NAME
    return refused


def answer_session_action(action: str, body: bytes, call: Call) -> bytes | None:
    """The answer to a session action of Flight; None when the action is none of them.

    Raises Invalid for a body that does not parse.
    """
    match action:
        case "GetSessionOptions":
            return answers.get_options_result(options_of(call.recalled()))
        case "SetSessionOptions":
            return answers.set_options_result(refused_options(answers.read_set_options(body)))
        case "CloseSession":
            # Nothing is held for a session.
            return answers.close_session_result()
    return None
