"""The options of a session: set by SQL or by Flight's session actions, read back by both.

They stand in the session's record, so that every serving process heeds them from the next statement
on. An option says what a call header of its name says, for every call that does not say it itself.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from duckmesh.errors import DuckMeshError, ErrorCode, Invalid, NotSupported
from flight_server import answers
from flight_server.answers import OptionError, OptionValue
from flight_server.authenticate import Call
from flight_server.headers import (
    CONSISTENCY,
    CONSISTENCY_TIMEOUT,
    MIN_TOKEN,
    SNAPSHOT_ID,
    SNAPSHOT_TIME,
    TAG,
    CallOptions,
    read_options,
)
from flight_server.sessions import Session
from gateway.sessions import ClientSessions
from query_engine.relations import CATALOG, MAIN_SCHEMA
from query_engine.session_statements import SetOption, UseSchema

LAST_TOKEN: Final = "last_visibility_token"  # noqa: S105 - an option's name
_FIXED: Final = {"catalog": CATALOG, "schema": MAIN_SCHEMA}
_READ_ONLY: Final = (LAST_TOKEN, "tenant", "session_id", "in_transaction")
_PREFIX: Final = "duckmesh."
_HEADER_OF: Final = {
    "consistency": CONSISTENCY,
    "min_visibility_token": MIN_TOKEN,
    "snapshot_id": SNAPSHOT_ID,
    "snapshot_time": SNAPSHOT_TIME,
    "tag": TAG,
    "consistency_timeout": CONSISTENCY_TIMEOUT,
}
_POINTS: Final = ("min_visibility_token", "snapshot_id", "snapshot_time", "tag")
"""At most one of these is set: each ends the others."""

_HARMLESS: Final[Mapping[str, frozenset[str] | None]] = {
    "timezone": frozenset({"utc", "etc/utc", "gmt", "z"}),
    "client_encoding": frozenset({"utf8", "utf-8", "unicode"}),
    "schema": frozenset({MAIN_SCHEMA}),
    "search_path": frozenset({MAIN_SCHEMA, f"{CATALOG}.{MAIN_SCHEMA}"}),
    "application_name": None,
    "extra_float_digits": None,
    "statement_timeout": frozenset({"0"}),
}
"""What clients set that is so already, or says nothing here; None stands for any value."""


def effective(options: CallOptions, session: Session) -> CallOptions:
    """The options of a call, and those of its session for what the call leaves open.

    A call that names a point in time, or a consistency, is not held to the session's snapshot; of
    two minimum tokens the larger counts.
    """
    if not session.options:
        return options
    known = read_options(
        {_HEADER_OF[name]: [str(value)] for name, value in session.options.items()}
    )
    merged = replace(
        options,
        consistency=options.consistency or known.consistency,
        consistency_timeout=options.consistency_timeout or known.consistency_timeout,
    )
    if options.names_snapshot:
        return merged
    tokens = [t for t in (options.min_token, known.min_token) if t is not None]
    merged = replace(merged, min_token=max(tokens, default=None))
    if options.min_token is not None or options.consistency is not None:
        return merged
    return replace(
        merged, snapshot_id=known.snapshot_id, snapshot_time=known.snapshot_time, tag=known.tag
    )


def _changes(name: str, value: OptionValue) -> dict[str, str | None]:
    """What setting an option writes into the record; None erases. Raises Invalid, NotSupported."""
    short = name.lower().removeprefix(_PREFIX)
    header = _HEADER_OF.get(short)
    if header is None:
        raise NotSupported(
            ErrorCode.NOT_SUPPORTED,
            f"{name[:80]!r} cannot be set: the options of a session are "
            f"{', '.join(_PREFIX + each for each in _HEADER_OF)}",
            option=name[:80],
        )
    if value is None or value == "" or str(value).lower() == "default":
        return {short: None}
    text = str(value)
    read_options({header: [text]})
    others = {each: None for each in _POINTS if short in _POINTS}
    return {**others, short: text}


class SessionDesk:
    """Answers what a client says to its session. Stateless and safe for threads."""

    def __init__(self, sessions: ClientSessions) -> None:
        self._sessions = sessions

    # ---- SQL

    def carry_out(self, call: Call, asked: SetOption | UseSchema) -> None:
        """SET, RESET or USE. Raises Invalid and NotSupported for what cannot be set."""
        if isinstance(asked, UseSchema):
            _check_schema(asked)
            return
        if _is_harmless(asked):
            return
        changes = _changes(asked.name, asked.value)
        if not call.in_session:
            raise Invalid(
                ErrorCode.SQL_NOT_ALLOWED,
                "SET needs a session: send back the authorization header or the cookie of the "
                "first answer, or say it in a header of the call",
            )
        self._sessions.change_options(call.identity, call.session.session_id, changes)

    # ---- Actions

    def answer(self, action: str, body: bytes, call: Call) -> bytes | None:
        """The answer to a session action of Flight; None when the action is none of them.

        Raises Invalid for a body that does not parse.
        """
        match action:
            case "GetSessionOptions":
                return answers.get_options_result(options_of(call.recalled()))
            case "SetSessionOptions":
                return answers.set_options_result(self._set(call, answers.read_set_options(body)))
            case "CloseSession":
                if call.in_session:
                    self._sessions.close(call.identity, call.session.session_id)
                return answers.close_session_result()
        return None

    def _set(self, call: Call, wanted: Mapping[str, OptionValue]) -> dict[str, OptionError]:
        """Set what can be set, all at once; why each other option cannot."""
        refused: dict[str, OptionError] = {}
        changes: dict[str, str | None] = {}
        for name, value in wanted.items():
            if name in _FIXED:
                if value not in (None, "", _FIXED[name]):
                    refused[name] = OptionError.INVALID_VALUE
            elif name in _READ_ONLY:
                refused[name] = OptionError.ERROR
            else:
                _take(name, value, changes, refused)
        if changes:
            self._sessions.change_options(call.identity, call.session.session_id, changes)
        return refused


def _take(
    name: str,
    value: OptionValue,
    changes: dict[str, str | None],
    refused: dict[str, OptionError],
) -> None:
    try:
        changes |= _changes(name, value)
    except NotSupported:
        refused[name] = OptionError.INVALID_NAME
    except DuckMeshError:
        refused[name] = OptionError.INVALID_VALUE


def options_of(session: Session) -> dict[str, OptionValue]:
    """Every option of the session that has a value."""
    return {
        **_FIXED,
        "tenant": session.identity.tenant,
        "session_id": session.session_id.hex,
        LAST_TOKEN: int(session.last_token),
        "in_transaction": session.transaction_id is not None,
        **{_PREFIX + name: str(value) for name, value in session.options.items()},
    }


def _is_harmless(asked: SetOption) -> bool:
    if asked.name not in _HARMLESS:
        return False
    accepted = _HARMLESS[asked.name]
    if asked.value is None or accepted is None or asked.value.lower() in accepted:
        return True
    raise NotSupported(
        ErrorCode.NOT_SUPPORTED,
        f"{asked.name} has one value here, {', '.join(sorted(accepted))}: convert in the query",
        option=asked.name,
    )


def _check_schema(asked: UseSchema) -> None:
    if asked.parts not in ((MAIN_SCHEMA,), (CATALOG,), (CATALOG, MAIN_SCHEMA)):
        raise Invalid(
            ErrorCode.SQL_NOT_ALLOWED,
            f"there is one schema, {CATALOG}.{MAIN_SCHEMA}: USE {MAIN_SCHEMA}, or leave it out",
            schema=".".join(asked.parts)[:80],
        )
