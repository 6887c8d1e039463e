"""The documents say what the code does: links, tests, settings, commands, codes, headers, words."""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from command_line.errors_reference import REFERENCE, errors_page
from command_line.main import program
from duckmesh import errors
from duckmesh.errors import DuckMeshError, ErrorCode
from duckmesh.settings import CLIENT_VARIABLES, CONFIG_FILE_VARIABLE, FIELDS, variable_of
from flight_server import boundary, commands, headers, messages
from flight_server.ticket_actions import CancelStatus

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], key=lambda page: page.as_posix()
)
ROOMS = (
    "duckmesh",
    "catalog",
    "ingest_bus",
    "object_store",
    "query_engine",
    "data_files",
    "grpc_transport",
    "gateway",
    "coordinator",
    "flight_server",
    "http_shim",
    "command_line",
)
BANNED = {"manager", "service", "handler", "helper", "utils", "common", "base", "impl"}
# Statuses of gRPC and ADBC that the documents speak of and DuckMesh does not send.
FOREIGN_CODES = {"ALREADY_EXISTS", "RESOURCE_EXHAUSTED", "ABORTED", "NOT_IMPLEMENTED", "TIMEOUT"}
# Types of DuckDB.
FOREIGN_CODES |= {"TIME_NS", "TIMESTAMP_NS", "TIMESTAMPTZ_NS"}
ADR_PARTS = ["Context", "Decision", "Consequences", "Alternatives"]

LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED_TEST = re.compile(r"`(test_\w+)`")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose_of(page: Path) -> str:
    return FENCE.sub("", text_of(page))


def anchors_of(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@cache
def functions_of(file: Path) -> frozenset[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@each_page
def test_every_relative_link_resolves(page: Path) -> None:
    broken = []
    for link in LINK.finditer(prose_of(page)):
        target, _, anchor = link["target"].partition("#")
        if "://" in target:
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in anchors_of(file)):
            broken.append(link["target"])
    assert broken == []


@each_page
def test_every_linked_test_exists(page: Path) -> None:
    """A test is named as a link to its file, so that its promise is one click away."""
    prose = prose_of(page)
    missing = []
    for link in LINK.finditer(prose):
        if named := NAMED_TEST.fullmatch(link["text"]):
            file = (page.parent / link["target"]).resolve()
            if not file.is_file() or named[1] not in functions_of(file):
                missing.append(named[1])
    assert missing == []
    assert NAMED_TEST.findall(LINK.sub("", prose)) == []


def test_every_guarantee_names_a_test_or_is_planned() -> None:
    rows = [
        row for row in text_of(ROOT / "docs/guarantees.md").splitlines() if row.startswith("| ")
    ]
    promises = [row for row in rows if not row.startswith(("| promise", "|---"))]
    assert len(promises) > 10
    unproved = [
        row for row in promises if "*planned*" not in row and not re.search(r"\[`test_\w+`\]", row)
    ]
    assert unproved == []


@each_page
def test_every_setting_exists(page: Path) -> None:
    known = {variable_of(key) for key in FIELDS} | {CONFIG_FILE_VARIABLE, *CLIENT_VARIABLES}
    named = set(re.findall(r"\bDUCKMESH_[A-Z0-9_]*[A-Z0-9]\b", text_of(page)))
    assert {name for name in named - known if not name.startswith("DUCKMESH_TEST")} == set()


def commands_of(page: Path) -> Iterator[list[str]]:
    """The words after `duckmesh` in code, on lines that do not say *planned*."""
    text = text_of(page)
    spans = re.findall(r"`duckmesh ([^`]+)`", FENCE.sub("", text))
    planned = {
        span
        for line in text.splitlines()
        if "*planned*" in line
        for span in re.findall(r"`duckmesh ([^`]+)`", line)
    }
    yield from (span.split() for span in spans if span not in planned)
    for language, block in FENCE.findall(text):
        if language in ("", "sh", "console"):
            shell = re.findall(r"^(?:\$ )?(?:\S*/)?duckmesh ([^#\n]+)", block, re.MULTILINE)
            yield from (line.split() for line in shell)


@each_page
def test_every_command_exists(page: Path) -> None:
    context = click.Context(program)
    unknown = []
    for words in commands_of(page):
        command: click.Command | None = program
        for word in words:
            if not isinstance(command, click.Group) or not re.fullmatch(r"[a-z-]+", word):
                break
            command = command.get_command(context, word)
        if command is None:
            unknown.append(" ".join(words))
    assert unknown == []


def arguments_of(command: click.Command) -> Iterator[str]:
    """The capitals that a command's help uses for its arguments."""
    context = click.Context(command)
    yield from (each.make_metavar(context) for each in command.params)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from arguments_of(below)


@each_page
def test_every_error_code_exists(page: Path) -> None:
    known = {code.value for code in ErrorCode} | {status.name for status in boundary.Status}
    known |= set(arguments_of(program)) | {status.name for status in CancelStatus}
    named = set(re.findall(r"`([A-Z]{3,}_[A-Z_]+)`", prose_of(page)))
    ours = {name for name in named if not name.startswith("DUCKMESH_")}
    assert ours - known - FOREIGN_CODES == set()


def test_every_error_code_is_documented() -> None:
    assert set(REFERENCE) == set(ErrorCode)
    assert text_of(ROOT / "docs/errors.md") == errors_page(), (
        "run `python -m command_line.errors_reference` in the root of the tree"
    )


def raised_codes() -> dict[ErrorCode, set[type[DuckMeshError]]]:
    """Which classes the rooms raise each code with, read from their source."""
    raised: dict[ErrorCode, set[type[DuckMeshError]]] = {}
    for file in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.args):
                continue
            kind, code = getattr(errors, call.func.id, None), call.args[0]
            if (
                isinstance(kind, type)
                and issubclass(kind, DuckMeshError)
                and isinstance(code, ast.Attribute)
                and isinstance(code.value, ast.Name)
                and code.value.id == "ErrorCode"
            ):
                raised.setdefault(ErrorCode[code.attr], set()).add(kind)
    return raised


def mapped_codes() -> set[ErrorCode]:
    """The codes that a strict model of the HTTP door maps a field to: it raises them as Invalid."""
    mapped = set()
    for file in (ROOT / "http_shim").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "codes":
                mapped |= set(re.findall(r"ErrorCode\.([A-Z_]+)", ast.unparse(node)))
    return {ErrorCode[name] for name in mapped}


def test_a_code_is_documented_with_the_classes_that_carry_it() -> None:
    raised = raised_codes()
    for code in mapped_codes():
        raised.setdefault(code, set()).add(errors.Invalid)
    assert len(raised) > 25
    for code, entry in REFERENCE.items():
        if code in (ErrorCode.FENCED, ErrorCode.CORRUPT, ErrorCode.INTERNAL):
            continue
        assert entry.planned == (code not in raised), code
        assert entry.planned or set(entry.kinds) == raised[code], code


FLIGHT_SQL = ROOT / "docs/flight-sql.md"


def test_every_command_of_the_door_is_documented() -> None:
    page = text_of(FLIGHT_SQL)
    known = {
        kind.MESSAGE
        for kind in vars(commands).values()
        if isinstance(kind, type) and issubclass(kind, commands.Command) and kind.MESSAGE
    }
    for message in known:
        name = message.removeprefix("Action").removesuffix("Request")
        assert f"`{name}`" in page, name
    for action in (*commands.SQL_ACTIONS, "SetSessionOptions", "GetSessionOptions", "CloseSession"):
        assert f"`{action}`" in page, action


def test_every_command_that_is_documented_is_known() -> None:
    refused = set(commands._NOT_SUPPORTED)
    for name in re.findall(r"`(Command[A-Z]\w+)`", text_of(FLIGHT_SQL)):
        if name not in refused:
            messages.sql(name)


def header_names() -> set[str]:
    sources = [Path(headers.__file__), Path(boundary.__file__)]
    found = (re.findall(r'"(x-[a-z-]+)"', source.read_text(encoding="utf-8")) for source in sources)
    return {name for names in found for name in names}


def test_every_header_is_documented() -> None:
    page = text_of(FLIGHT_SQL)
    assert {name for name in header_names() if f"`{name}`" not in page} == set()


@each_page
def test_every_header_exists(page: Path) -> None:
    named = set(re.findall(r"\bx-(?:duckmesh|trace|sqlstate)[a-z-]*[a-z]\b(?!-)", text_of(page)))
    assert named - header_names() == set()


def test_no_module_has_a_banned_name() -> None:
    glossary = text_of(ROOT / "docs/glossary.md")
    assert {word for word in BANNED if f"`{word}`" not in glossary} == set()
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 50
    named = [path for path in files if BANNED & set(re.split(r"[_.]", path.name))]
    assert named == []


def test_every_room_is_in_the_architecture() -> None:
    page = text_of(ROOT / "docs/architecture.md")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    rooms = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(rooms) == sorted(ROOMS)
    assert {room for room in rooms if f"| `{room}` |" not in page} == set()


def files_named(page: Path) -> set[str]:
    rooms = "|".join((*ROOMS, "migrations", "tests"))
    return set(re.findall(rf"`((?:{rooms})/[\w/.-]+\.(?:py|sql|proto))`", prose_of(page)))


@each_page
def test_every_file_that_is_named_exists(page: Path) -> None:
    assert {name for name in files_named(page) if not (ROOT / name).is_file()} == set()


@each_page
def test_python_in_the_documents_compiles(page: Path) -> None:
    for language, block in FENCE.findall(text_of(page)):
        if language == "python":
            compile(block, str(page), "exec")


def test_decisions_are_numbered_and_have_their_parts() -> None:
    records = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    index = text_of(ROOT / "docs/adr/README.md")
    for record in records:
        assert re.findall(r"^## (.+)$", text_of(record), re.MULTILINE) == ADR_PARTS, record.name
        assert f"({record.name})" in index
