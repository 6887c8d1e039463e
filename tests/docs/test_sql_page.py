"""The statements of docs/sql.md, in their order, over real rooms: each does what the page says."""

import re
from collections.abc import Iterator
from pathlib import Path

from duckmesh.errors import DuckMeshError, ErrorCode
from tests.rooms import Rooms

PAGE = Path(__file__).parent.parent.parent / "docs/sql.md"
STATEMENT = re.compile(r"^(?P<sql>[^;]+);(?:\s*-- (?P<says>.+))?$", re.MULTILINE)


def statements() -> Iterator[tuple[str, str | None]]:
    text = PAGE.read_text(encoding="utf-8")
    for block in re.findall(r"^```sql\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for found in STATEMENT.finditer(block):
            yield found["sql"].strip(), found["says"]


def outcome(rooms: Rooms, sql: str) -> str | None:
    """What the page would say of it: its first row, the code of its refusal, or nothing."""
    try:
        if rooms.reads.is_query(rooms.acme, sql):
            (row,) = rooms.query(sql).to_pylist()
            return str(tuple(row.values()))
        rooms.execute(sql)
    except DuckMeshError as error:
        return error.code.value
    rooms.publish_all()
    return None


def test_every_statement_on_the_page_does_what_the_page_says(rooms: Rooms) -> None:
    found = [(sql, says, outcome(rooms, sql)) for sql, says in statements()]
    assert len(found) > 50
    assert [each for each in found if each[1] != each[2]] == []
    codes = {says for _, says, _ in found if says in ErrorCode.__members__}
    assert len(codes) > 5
