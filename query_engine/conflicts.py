"""What an INSERT asks for where its key is there already: OR REPLACE, OR IGNORE, ON CONFLICT.

An INSERT into a table with a primary key replaces the row of its key. A clause that says the same
in other words changes nothing; every other one is refused.
"""

from collections.abc import Sequence
from typing import NoReturn

from duckmesh.errors import ErrorCode, NotSupported
from query_engine.trees import Tree


def check_clause(conflict: Tree | None, key: Sequence[str]) -> None:
    """Raise NotSupported for a clause that no INSERT into a table with this key may have."""
    if conflict is None:
        return
    if not key:
        _refuse(
            "ON CONFLICT, OR REPLACE and OR IGNORE need a table with a primary key, and this one "
            "has none: insert the rows, and choose the newest in the query"
        )
    if conflict["action_type"] not in ("REPLACE", "UPDATE"):
        _refuse(
            "OR IGNORE and DO NOTHING are not supported, for an INSERT replaces the row of its "
            "key: insert the rows of a query that leaves out the keys which are there"
        )


def check_conflict(
    conflict: Tree | None, *, filled: Sequence[str], columns: Sequence[str], key: Sequence[str]
) -> None:
    """Raise NotSupported unless the clause asks to replace the whole row of the key.

    `conflict` is the clause's tree, None without one; `filled` are the columns that the INSERT
    gives values for. OR REPLACE would keep the others as they are.
    """
    check_clause(conflict, key)
    if conflict is None:
        return
    if conflict["action_type"] == "REPLACE":
        given = {name.lower() for name in filled}
    else:
        given = _given(conflict, key)
    kept = next((name for name in columns if name.lower() not in given), None)
    if kept is not None:
        raise NotSupported(
            ErrorCode.NOT_SUPPORTED,
            f"an INSERT replaces the whole row of its key, and column {kept!r} is not given anew: "
            "give it too, or change the row by UPDATE",
            column=kept,
        )


def _given(conflict: Tree, key: Sequence[str]) -> set[str]:
    """The columns that DO UPDATE replaces, and the key; in lower case."""
    change = conflict["set_info"]
    named, keyed = ({name.lower() for name in each} for each in (conflict["indexed_columns"], key))
    if named and named != keyed:
        _refuse(f"ON CONFLICT names the primary key, ({', '.join(key)}), or no columns")
    if conflict["condition"] is not None or change["condition"] is not None:
        _refuse(
            "ON CONFLICT takes no WHERE, for an INSERT replaces the row of its key: choose the "
            "rows to insert in a query"
        )
    for name, value in zip(change["columns"], change["expressions"], strict=True):
        path = [part.lower() for part in value.get("column_names", ())]
        if value["class"] != "COLUMN_REF" or path != ["excluded", name.lower()]:
            _refuse(
                "DO UPDATE sets a column to the same column of excluded, as in SET a = excluded.a: "
                "for other values use UPDATE"
            )
    return keyed | {name.lower() for name in change["columns"]}


def _refuse(message: str) -> NoReturn:
    raise NotSupported(ErrorCode.NOT_SUPPORTED, message)
