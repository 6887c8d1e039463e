"""The settings of a DuckMesh process: defaults < duckmesh.toml < DUCKMESH_* < flags.

Everything is checked here, at once, before anything is opened: a process never finds a bad
setting after it began to work.
"""

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from duckmesh.errors import ErrorCode, Invalid
from duckmesh.settings_forms import accepted_form, is_secret
from duckmesh.settings_groups import (
    AuditSettings,
    AuthSettings,
    CacheSettings,
    CatalogSettings,
    CoordinatorSettings,
    FlightSettings,
    Group,
    HttpSettings,
    IngestSettings,
    LogFormat,
    LoggingSettings,
    LogLevel,
    MaintenanceSettings,
    Profile,
    QuerySettings,
    QuotaSettings,
    StoreSettings,
    TelemetrySettings,
    TransactionSettings,
    UserPath,
)
from duckmesh.settings_safety import half_of_web_tokens, open_to_others, unsafe_in_production

__all__ = [
    "AuditSettings",
    "AuthSettings",
    "CacheSettings",
    "CatalogSettings",
    "CoordinatorSettings",
    "FlightSettings",
    "HttpSettings",
    "IngestSettings",
    "LogFormat",
    "LogLevel",
    "LoggingSettings",
    "MaintenanceSettings",
    "Profile",
    "QuerySettings",
    "QuotaSettings",
    "Settings",
    "StoreSettings",
    "TelemetrySettings",
    "TransactionSettings",
    "load_settings",
]

ENVIRONMENT_PREFIX: Final = "DUCKMESH_"
CONFIG_FILE_VARIABLE: Final = "DUCKMESH_CONFIG"
CONFIG_FILE_NAME: Final = "duckmesh.toml"
OTHERS_PREFIXES: Final = ("DUCKMESH_TEST_",)
"""Variables of the test suite's, which are no settings."""
CLIENT_VARIABLES: Final = ("DUCKMESH_URI", "DUCKMESH_API_KEY", "DUCKMESH_TO")
"""Variables that say which server the client commands talk to; no setting of a process."""

PROFILE_DEFAULTS: Final[Mapping[Profile, Mapping[str, Any]]] = {
    Profile.DEV: {"auth.open_mode": True, "logging.format": "console"},
    Profile.TEST: {
        "auth.open_mode": True,
        "flight.port": 0,
        "coordinator.poll_seconds": 0.1,
        "coordinator.flush_interval_ms": 10,
        "logging.level": "warning",
    },
    Profile.PROD: {},
}


class Settings(BaseSettings):
    """All settings of a process, checked. Its repr shows no secret.

    `load_settings` makes it. Called directly, it takes its arguments and the defaults alone.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    profile: Profile = Field(
        default=Profile.DEV,
        description="Where DuckMesh runs: it chooses defaults, and `prod` refuses what is unsafe.",
    )
    data_dir: UserPath = Field(
        default=Path("~/.local/share/duckmesh"),
        validate_default=True,
        description="Where `duckmesh up` keeps its Postgres, its objects and its cache.",
        json_schema_extra={
            "default_text": "`$XDG_DATA_HOME/duckmesh`, else `~/.local/share/duckmesh`"
        },
    )
    catalog: CatalogSettings = CatalogSettings()
    store: StoreSettings = StoreSettings()
    cache: CacheSettings = CacheSettings()
    flight: FlightSettings = FlightSettings()
    http: HttpSettings = HttpSettings()
    auth: AuthSettings = AuthSettings()
    ingest: IngestSettings = IngestSettings()
    transaction: TransactionSettings = TransactionSettings()
    coordinator: CoordinatorSettings = CoordinatorSettings()
    maintenance: MaintenanceSettings = MaintenanceSettings()
    query: QuerySettings = QuerySettings()
    quota: QuotaSettings = QuotaSettings()
    audit: AuditSettings = AuditSettings()
    logging: LoggingSettings = LoggingSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what load_settings merged: the library's sources pass over unknown variables."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


def _fields() -> Iterator[tuple[str, FieldInfo]]:
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group):
            for inner, inner_field in field.annotation.model_fields.items():
                yield f"{name}.{inner}", inner_field
        else:
            yield name, field


FIELDS: Final[Mapping[str, FieldInfo]] = dict(_fields())
"""Every setting by its key, such as `flight.port`, in the order of the documentation."""


def variable_of(key: str) -> str:
    """The environment variable of a setting: `flight.port` is DUCKMESH_FLIGHT_PORT."""
    return ENVIRONMENT_PREFIX + key.replace(".", "_").upper()


_KEY_OF_VARIABLE: Final = {variable_of(key): key for key in FIELDS}


@dataclass(frozen=True, slots=True)
class _Given:
    value: Any
    source: str


class _Problems(list[str]):
    def add(self, key: str, source: str, reason: str) -> None:
        self.append(f"{key} ({source}): {reason}")

    def add_unknown(self, name: str, source: str, known: Mapping[str, Any]) -> None:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; docs/configuration.md has them all"
        self.add(name, source, f"there is no such setting{hint}")


def load_settings(
    *,
    profile: Profile | str | None = None,
    config_file: Path | None = None,
    environment: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Read the settings from all sources; the later one wins: profile, file, environment, flags.

    The file is `config_file`, else what DUCKMESH_CONFIG names, else duckmesh.toml in the working
    directory when there is one. `overrides` maps keys such as `flight.port` to values; None means
    that the flag was not given. An environment variable that is empty counts as not set.

    Raises Invalid (SETTINGS_INVALID) that names *every* problem with its key, its source and the
    accepted form. No secret is repeated. Opens no connection.
    """
    problems = _Problems()
    given: dict[str, _Given] = {}
    given.update(_from_file(_config_path(config_file, environment, problems), problems))
    given.update(_from_environment(environment, problems))
    given.update(_from_flags({"profile": profile, **(overrides or {})}, problems))
    chosen = _profile(given)
    defaults = {"data_dir": _data_dir(environment), **PROFILE_DEFAULTS[chosen]}
    source = f"the defaults of profile {chosen}"
    merged = {key: _Given(value, source) for key, value in defaults.items()} | given
    groups = _validated(merged, problems)
    _check_together(chosen, groups, problems)
    if problems:
        count = "a setting is" if len(problems) == 1 else f"{len(problems)} settings are"
        lines = "".join(f"\n- {problem}" for problem in problems)
        raise Invalid(ErrorCode.SETTINGS_INVALID, f"{count} wrong:{lines}", problems=[*problems])
    return Settings.model_validate(groups)


# --- the sources ---------------------------------------------------------------------------------


def _config_path(
    config_file: Path | None, environment: Mapping[str, str], problems: _Problems
) -> Path | None:
    named = config_file or (
        Path(environment[CONFIG_FILE_VARIABLE]) if environment.get(CONFIG_FILE_VARIABLE) else None
    )
    if named is None:
        here = Path(CONFIG_FILE_NAME)
        return here if here.is_file() else None
    if not named.is_file():
        source = f"environment {CONFIG_FILE_VARIABLE}" if config_file is None else "flag"
        problems.add("the settings file", source, "there is no such file; name a TOML file")
        return None
    return named


def _from_file(path: Path | None, problems: _Problems) -> dict[str, _Given]:
    if path is None:
        return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        where = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "not UTF-8"
        problems.add("the settings file", path.name, f"it is not TOML: {where}")
        return {}
    except OSError:
        problems.add("the settings file", path.name, "it cannot be read; change its permissions")
        return {}
    flat: dict[str, _Given] = {}
    for name, value in content.items():
        inner = value.items() if isinstance(value, dict) else [(None, value)]
        for inner_name, inner_value in inner:
            key = name if inner_name is None else f"{name}.{inner_name}"
            if key in FIELDS:
                flat[key] = _Given(inner_value, path.name)
            else:
                problems.add_unknown(key, path.name, FIELDS)
    return flat


def _from_environment(environment: Mapping[str, str], problems: _Problems) -> dict[str, _Given]:
    flat: dict[str, _Given] = {}
    for name, value in sorted(environment.items()):
        if not name.startswith(ENVIRONMENT_PREFIX) or name.startswith(OTHERS_PREFIXES):
            continue
        if name in _KEY_OF_VARIABLE:
            if value:
                flat[_KEY_OF_VARIABLE[name]] = _Given(value, f"environment {name}")
        elif name not in (CONFIG_FILE_VARIABLE, *CLIENT_VARIABLES):
            problems.add_unknown(name, "environment", _KEY_OF_VARIABLE)
    return flat


def _from_flags(overrides: Mapping[str, Any], problems: _Problems) -> dict[str, _Given]:
    flat: dict[str, _Given] = {}
    for key, value in overrides.items():
        if key not in FIELDS:
            problems.add_unknown(key, "flag", FIELDS)
        elif value is not None:
            flat[key] = _Given(value, "flag")
    return flat


def _profile(given: Mapping[str, _Given]) -> Profile:
    named = given.get("profile")
    # A wrong name is reported with the other values.
    return next((each for each in Profile if named and each == named.value), Profile.DEV)


def _data_dir(environment: Mapping[str, str]) -> Path:
    root = environment.get("XDG_DATA_HOME")
    if root and Path(root).is_absolute():  # The XDG specification has relative ones ignored.
        return Path(root) / "duckmesh"
    return Path(environment.get("HOME") or "~") / ".local" / "share" / "duckmesh"


# --- the checks ----------------------------------------------------------------------------------


def _validated(merged: Mapping[str, _Given], problems: _Problems) -> dict[str, Any]:
    """The groups that are right in themselves; those that are not go to `problems`."""
    nested: dict[str, Any] = {}
    for key, given in merged.items():
        group, _, name = key.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[name] = given.value
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if not (isinstance(kind, type) and issubclass(kind, Group)):
            continue
        try:
            nested[name] = kind.model_validate(nested.get(name, {}))
        except ValidationError as error:
            del nested[name]
            _report(error, merged, problems, group=name)
    try:
        Settings.model_validate(nested)
    except ValidationError as error:
        _report(error, merged, problems)
    return nested


def _report(
    error: ValidationError,
    merged: Mapping[str, _Given],
    problems: _Problems,
    *,
    group: str | None = None,
) -> None:
    wrong = {str(each["loc"][0]): None for each in error.errors(include_input=False)}
    for name in wrong:
        key = f"{group}.{name}" if group else name
        field, given = FIELDS[key], merged[key]
        shown = "its value is refused" if is_secret(field) else f"{given.value!r:.60} is refused"
        problems.add(key, given.source, f"{shown}; give {accepted_form(field)}")


def _check_together(profile: Profile, groups: Mapping[str, Any], problems: _Problems) -> None:
    """What no single setting can tell. Groups that are wrong in themselves are left out."""

    def refuse(key: str, reason: str, *, of: str = "settings together") -> None:
        problems.add(key, of, reason)

    for name in ("flight", "http"):
        match groups.get(name):
            case (FlightSettings() | HttpSettings()) as door:
                if (door.tls_certificate is None) != (door.tls_key is None):
                    refuse(f"{name}.tls_key", f"set both {name}.tls_certificate and {name}.tls_key")
                if door.client_ca is not None and door.tls_certificate is None:
                    needed = f"it needs {name}.tls_certificate and {name}.tls_key"
                    refuse(f"{name}.client_ca", needed)
    match groups:
        case {"auth": AuthSettings() as auth}:
            for key, reason in half_of_web_tokens(auth):
                refuse(key, reason)
    match groups:
        case {"catalog": CatalogSettings(pool_min=least, pool_max=most)} if least > most:
            refuse("catalog.pool_min", "give at most catalog.pool_max")
    match groups:
        case {
            "query": QuerySettings(consistency_timeout_ms=usual, max_consistency_timeout_ms=most)
        }:
            if usual > most:
                refuse(
                    "query.consistency_timeout_ms", "give at most query.max_consistency_timeout_ms"
                )
    production = profile is Profile.PROD
    unsafe = unsafe_in_production if production else open_to_others
    for key, reason in unsafe(groups):
        refuse(key, reason, of="profile prod" if production else "settings together")
