"""Which server a client command talks to, and with what key."""

import os
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import click

from command_line.data_directory import DataDirectory
from command_line.invocation import Invocation
from duckmesh.errors import ErrorCode, Invalid, NotFound

SCHEMES: Final = ("grpc", "grpc+tcp", "grpc+tls")
CLIENTS_FILE: Final = "clients.toml"
_PROFILE_KEYS: Final = ("uri", "key", "key_file", "tls_root")
_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server listens, the key to show to it, and the authority that its name rests on."""

    uri: str
    key: str | None = None
    tls_root: str | None = None
    """Certificates in PEM; None stands for those of the system."""


def server_options(command: _Command) -> _Command:
    """The options of every command that talks to a server; `find_server` takes them."""
    options = (
        click.option("--uri", help="The server, such as grpc://host:31337 or grpc+tls://host:443."),
        click.option("--to", metavar="NAME", help="The server of [profile.NAME] in clients.toml."),
        click.option(
            "--key", help="The API key. DUCKMESH_API_KEY keeps it out of the process list."
        ),
        click.option(
            "--key-file",
            type=click.Path(dir_okay=False, path_type=Path),
            help="A file that holds the API key.",
        ),
        click.option(
            "--tls-root",
            type=click.Path(dir_okay=False, path_type=Path),
            help="The certificates (PEM) to trust, instead of the system's.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def find_server(
    invocation: Invocation,
    *,
    uri: str | None = None,
    to: str | None = None,
    key: str | None = None,
    key_file: Path | None = None,
    tls_root: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Server:
    """The server that flags name, else DUCKMESH_URI or DUCKMESH_TO, else the `up` that runs here.

    A key of the environment is shown to every server but one of a profile, which brings its own.
    Raises Invalid (SETTINGS_INVALID) when nothing names a server, or two things do, and NotFound
    for a profile that is not there. Opens no connection.
    """
    if uri is not None and to is not None:
        raise _wrong("--uri and --to name two servers: give one of them")
    if uri is None and to is None:
        uri, to = environment.get("DUCKMESH_URI") or None, environment.get("DUCKMESH_TO") or None
        if uri is not None and to is not None:
            raise _wrong("DUCKMESH_URI and DUCKMESH_TO name two servers: unset one of them")
    given_key = key if key is not None else _read(key_file, "the key file", strip=True)
    given_root = _read(tls_root, "the file of trusted certificates")
    if to is not None:
        found = _of_profile(to, environment)
        return Server(found.uri, given_key or found.key, given_root or found.tls_root)
    shown = given_key or environment.get("DUCKMESH_API_KEY") or None
    return Server(_checked(uri or _running_here(invocation)), shown, given_root)


def _running_here(invocation: Invocation) -> str:
    running = DataDirectory(invocation.tool_settings().data_dir).running()
    if running is None:
        raise _wrong(
            "no server is named, and no `duckmesh up` runs on this data directory: "
            "give --uri, --to or DUCKMESH_URI, or start one"
        )
    return running.uri


# --- profiles ------------------------------------------------------------------------------------


def clients_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the profiles lie: the XDG directory of configuration."""
    return xdg_directory("XDG_CONFIG_HOME", ".config", environment) / CLIENTS_FILE


def xdg_directory(variable: str, fallback: str, environment: Mapping[str, str]) -> Path:
    """DuckMesh's own place in a directory of the XDG specification, which ignores relative ones."""
    named = Path(environment.get(variable) or "")
    home = Path(environment.get("HOME") or "~").expanduser()
    return (named if named.is_absolute() else home / fallback) / "duckmesh"


def _of_profile(name: str, environment: Mapping[str, str]) -> Server:
    path = clients_file(environment)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        content = {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _wrong(f"{CLIENTS_FILE} is not TOML: {error}") from error
    except OSError as error:
        raise _wrong(f"{CLIENTS_FILE} cannot be read: change its permissions") from error
    profiles = content.get("profile")
    profiles = profiles if isinstance(profiles, dict) else {}
    found = profiles.get(name)
    if not isinstance(found, dict):
        known = f"; it has {', '.join(sorted(profiles))}" if profiles else ""
        raise NotFound(
            ErrorCode.NOT_FOUND, f"{CLIENTS_FILE} has no [profile.{name}]: write it{known}"
        )
    _warn_of_readers(path, content)
    return _profile(name, found, path.parent)


def _profile(name: str, found: Mapping[str, Any], folder: Path) -> Server:
    for key, value in found.items():
        if key not in _PROFILE_KEYS or not isinstance(value, str):
            raise _wrong(
                f"[profile.{name}] of {CLIENTS_FILE}: {key} is refused; "
                f"give texts for {', '.join(_PROFILE_KEYS)}"
            )
    if "uri" not in found:
        raise _wrong(f"[profile.{name}] of {CLIENTS_FILE} lacks its uri")
    if "key" in found and "key_file" in found:
        raise _wrong(f"[profile.{name}] of {CLIENTS_FILE} has key and key_file: leave one out")

    def of_file(key: str) -> str | None:
        # Relative to the file that names it, wherever the command runs.
        place = folder / Path(found[key]).expanduser() if key in found else None
        return _read(place, f"the {key} of [profile.{name}]", strip=key == "key_file")

    return Server(
        _checked(found["uri"]), found.get("key") or of_file("key_file"), of_file("tls_root")
    )


def _warn_of_readers(path: Path, content: Mapping[str, Any]) -> None:
    """Say so when others of this machine can read keys."""
    holds_keys = any(
        isinstance(each, dict) and "key" in each for each in content["profile"].values()
    )
    if holds_keys and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        click.echo(
            f"warning: {CLIENTS_FILE} holds keys, and others may read it: chmod 600", err=True
        )


def _read(path: Path | None, what: str, *, strip: bool = False) -> str | None:
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(f"{what} cannot be read: correct its name, or its permissions") from error
    return text.strip() if strip else text


def _checked(uri: str) -> str:
    try:
        parts = urlsplit(uri)
        right = parts.scheme in SCHEMES and bool(parts.hostname) and parts.port is not None
    except ValueError:
        right = False
    if not right:
        raise _wrong(f"the server's URI is refused: give {' or '.join(SCHEMES)}://host:port")
    return uri


def _wrong(message: str) -> Invalid:
    return Invalid(ErrorCode.SETTINGS_INVALID, message)
