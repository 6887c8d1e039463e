"""Settings: four sources, one order, every problem at once, no secret shown."""

import subprocess
import sys
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from duckmesh.errors import ErrorCode, Invalid
from duckmesh.settings import FIELDS, Profile, Settings, load_settings, variable_of
from duckmesh.settings_reference import configuration_page, environment_example

ROOT = Path(__file__).parents[2]
DSN = "postgresql://duckmesh:hunter2@db/duckmesh"
SAFE = {"DUCKMESH_CATALOG_DSN": DSN, "DUCKMESH_STORE_URL": "s3://lake/x"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without a duckmesh.toml."""
    monkeypatch.chdir(tmp_path)


def load(environment: dict[str, str] | None = None, **more: Any) -> Settings:
    return load_settings(environment=environment or {}, **more)


def problems(environment: dict[str, str] | None = None, **more: Any) -> list[str]:
    with pytest.raises(Invalid) as caught:
        load(environment, **more)
    assert caught.value.code is ErrorCode.SETTINGS_INVALID
    found: list[str] = caught.value.context["problems"]
    assert all(problem in str(caught.value) for problem in found)
    return found


def write_toml(text: str, path: Path = Path("duckmesh.toml")) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_each_source_wins_over_the_one_before() -> None:
    assert load().flight.port == 31337
    assert load(profile="test").flight.port == 0
    write_toml("profile = 'test'\n[flight]\nport = 1\nhost = '127.0.0.9'\n")
    assert load().profile is Profile.TEST
    assert load().flight.port == 1
    environment = {"DUCKMESH_FLIGHT_PORT": "2"}
    assert load(environment).flight.port == 2
    settings = load(environment, overrides={"flight.port": 3, "flight.host": None})
    assert (settings.flight.port, settings.flight.host) == (3, "127.0.0.9")


def test_the_profile_is_taken_from_the_last_source_that_names_it() -> None:
    file = write_toml("profile = 'prod'\n", Path("other.toml"))
    assert load({"DUCKMESH_PROFILE": "test"}, config_file=file).profile is Profile.TEST
    assert load({"DUCKMESH_PROFILE": "test"}, profile=Profile.DEV).profile is Profile.DEV
    assert load({"DUCKMESH_CONFIG": "other.toml", **SAFE}).profile is Profile.PROD


def test_a_file_that_is_named_must_be_there() -> None:
    assert "no such file" in problems(config_file=Path("gone.toml"))[0]
    assert "DUCKMESH_CONFIG" in problems({"DUCKMESH_CONFIG": "gone.toml"})[0]


def test_a_file_that_is_not_toml_is_told_with_its_line() -> None:
    write_toml("[flight]\nport = \n")
    (problem,) = problems()
    assert "not TOML" in problem
    assert "line 2" in problem


def test_every_problem_is_told_at_once_with_key_source_and_form() -> None:
    write_toml("[flight]\nprot = 1\n[qeury]\nthreads = 1\n[query]\nthreads = 0\n")
    found = problems(
        {
            "DUCKMESH_AUTH_OPEN_MODE": "maybe",
            "DUCKMESH_LOGGING_LEVEL": "loud",
            "DUCKMESH_FLIGTH_HOST": "x",
        },
        overrides={"cache.capacity_bytes": "much", "cache.capacty": 1},
    )

    def refused(value: object) -> str:
        return f"{value!r} is refused; give "

    switch = "`true` or `false`"
    levels = "one of `debug`, `info`, `warning`, `error`"
    unknown = "there is no such setting; did you mean"
    assert sorted(found) == [
        f"DUCKMESH_FLIGTH_HOST (environment): {unknown} DUCKMESH_FLIGHT_HOST?",
        f"auth.open_mode (environment DUCKMESH_AUTH_OPEN_MODE): {refused('maybe')}{switch}",
        f"cache.capacity_bytes (flag): {refused('much')}a whole number from 16777216 on",
        f"cache.capacty (flag): {unknown} cache.capacity_bytes?",
        f"flight.prot (duckmesh.toml): {unknown} flight.port?",
        f"logging.level (environment DUCKMESH_LOGGING_LEVEL): {refused('loud')}{levels}",
        f"qeury.threads (duckmesh.toml): {unknown} query.threads?",
        f"query.threads (duckmesh.toml): {refused(0)}a whole number from 1 to 1024",
    ]


def test_an_unknown_profile_and_an_unknown_table_are_told() -> None:
    write_toml("flight = 7\n")
    found = problems(profile="production")
    assert any("'production' is refused; give one of `dev`, `test`, `prod`" in p for p in found)
    assert any(p.startswith("flight (duckmesh.toml)") for p in found)


def test_an_empty_variable_counts_as_not_set_and_others_are_not_ours() -> None:
    settings = load({"DUCKMESH_STORE_URL": "", "DUCKMESH_TEST_POSTGRES_DSN": "x", "HOME": "/h"})
    assert settings.store.url is None


def test_no_secret_is_shown() -> None:
    settings = load({**SAFE, "DUCKMESH_STORE_SECRET_ACCESS_KEY": "hunter2"})
    assert settings.catalog.dsn is not None
    assert settings.catalog.dsn.get_secret_value() == DSN
    assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()
    refused = problems({"DUCKMESH_CATALOG_DSN": "hunter2", "DUCKMESH_AUTH_SEALING_SECRET": "hunt"})
    assert len(refused) == 2
    assert not any("hunt" in problem for problem in refused)


def test_settings_are_frozen_and_closed() -> None:
    settings = load()
    with pytest.raises(ValidationError):
        settings.flight.port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Settings.model_validate({"flight": {"prot": 1}})


def test_settings_made_directly_read_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROFILE", "prod")
    monkeypatch.setenv("DATA_DIR", "elsewhere")
    monkeypatch.setenv("DUCKMESH_FLIGHT_PORT", "1")
    settings = Settings()
    assert settings.profile is Profile.DEV
    assert settings.data_dir == Path("~/.local/share/duckmesh").expanduser()
    assert settings.flight.port == 31337


def test_units_in_names_become_timedeltas() -> None:
    settings = load(overrides={"coordinator.flush_interval_ms": 250, "ingest.key_window_days": 2})
    assert settings.coordinator.lease == timedelta(seconds=30)
    assert settings.coordinator.flush_interval == timedelta(milliseconds=250)
    assert settings.ingest.key_window == timedelta(days=2)
    assert settings.query.max_consistency_timeout == timedelta(minutes=1)


def test_the_data_directory_follows_xdg() -> None:
    assert load({"XDG_DATA_HOME": "/x", "HOME": "/h"}).data_dir == Path("/x/duckmesh")
    assert load({"XDG_DATA_HOME": "rel", "HOME": "/h"}).data_dir == Path("/h/.local/share/duckmesh")
    assert load({"DUCKMESH_DATA_DIR": "/here"}).data_dir == Path("/here")
    assert load({"DUCKMESH_DATA_DIR": "~/d"}).data_dir == Path.home() / "d"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "db.example.org"])  # noqa: S104
@pytest.mark.parametrize("profile", ["dev", "test"])
def test_open_mode_is_for_this_machine_alone_at_either_door(host: str, profile: str) -> None:
    both = {"DUCKMESH_FLIGHT_HOST": host, "DUCKMESH_HTTP_HOST": host}
    for name, value in both.items():
        (problem,) = problems({name: value}, profile=profile)
        assert problem.startswith(f"{name.split('_')[1].lower()}.host (settings together)")
    assert len(problems(both, profile=profile)) == 2
    # A door that is not opened, callers who show keys, and one who knows what he does.
    load({"DUCKMESH_HTTP_HOST": host, "DUCKMESH_HTTP_ENABLED": "false"}, profile=profile)
    load({**both, "DUCKMESH_AUTH_OPEN_MODE": "false"}, profile=profile)
    load({**both, "DUCKMESH_AUTH_ALLOW_OPEN_BEYOND_LOOPBACK": "true"}, profile=profile)


def test_production_refuses_what_is_unsafe_all_at_once() -> None:
    found = problems(
        {"DUCKMESH_FLIGHT_HOST": "0.0.0.0", "DUCKMESH_AUTH_OPEN_MODE": "true"},  # noqa: S104
        profile="prod",
    )
    assert [problem.split(" ")[0] for problem in found] == [
        "auth.open_mode",
        "catalog.dsn",
        "store.url",
        "flight.host",
    ]
    assert all("(profile prod)" in problem for problem in found)


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"DUCKMESH_FLIGHT_HOST": "0.0.0.0", "DUCKMESH_FLIGHT_ALLOW_PLAINTEXT": "true"},  # noqa: S104
        {
            "DUCKMESH_FLIGHT_HOST": "::",
            "DUCKMESH_FLIGHT_TLS_CERTIFICATE": "c.pem",
            "DUCKMESH_FLIGHT_TLS_KEY": "k.pem",
        },
    ],
)
def test_production_accepts_what_is_safe(extra: dict[str, str]) -> None:
    settings = load({**SAFE, **extra}, profile="prod")
    assert not settings.auth.open_mode


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"flight.tls_key": "k.pem"}, "flight.tls_key"),
        ({"flight.client_ca": "ca.pem"}, "flight.client_ca"),
        ({"catalog.pool_min": 9}, "catalog.pool_min"),
        ({"query.consistency_timeout_ms": 60_001}, "query.consistency_timeout_ms"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    overrides: dict[str, Any], key: str
) -> None:
    (problem,) = problems(overrides=overrides)
    assert problem.startswith(f"{key} (settings together)")


def test_every_setting_has_a_meaning_and_a_variable_of_its_own() -> None:
    assert all(field.description for field in FIELDS.values())
    assert len({variable_of(key) for key in FIELDS}) == len(FIELDS)


def test_the_documents_are_current() -> None:
    advice = "run `python -m duckmesh.settings_reference` in the root of the tree"
    for path, text in {
        "docs/configuration.md": configuration_page(),
        ".env.example": environment_example(),
    }.items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, advice


def test_the_example_environment_is_accepted_as_it_stands() -> None:
    lines = [line[1:] for line in environment_example().splitlines() if line.startswith("#DUCK")]
    environment = dict(line.split("=", 1) for line in lines)
    assert set(environment) == {variable_of(key) for key in FIELDS} | {"DUCKMESH_CONFIG"}
    changed = {"auth", "logging"}  # The profile dev has defaults of its own.
    assert load(environment).model_dump(exclude=changed) == load().model_dump(exclude=changed)


def test_the_documented_file_is_accepted() -> None:
    example = configuration_page().split("```toml\n")[1].split("```")[0]
    assert tomllib.loads(example)["profile"] == "prod"
    assert load(config_file=write_toml(example, Path("example.toml"))).profile is Profile.PROD


def test_the_documents_are_written_by_one_command(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    subprocess.run([sys.executable, "-m", "duckmesh.settings_reference"], cwd=tmp_path, check=True)
    assert (tmp_path / "docs" / "configuration.md").read_text() == configuration_page()


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"JWT_ISSUER": "https://id"}, ["auth.jwt_audience", "auth.jwks_url"]),
        ({"JWT_AUDIENCE": "duckmesh"}, ["auth.jwt_issuer"]),
        ({"JWKS_URL": "https://id/keys"}, ["auth.jwt_issuer"]),
        (
            {
                "JWT_ISSUER": "https://id",
                "JWT_AUDIENCE": "duckmesh",
                "JWKS_URL": "https://id/keys",
                "JWKS_FILE": "/keys.json",
            },
            ["auth.jwks_url"],
        ),
        ({"JWKS_URL": "http://id.example.org/keys"}, ["auth.jwks_url"]),
        ({"JWT_ALGORITHMS": "none"}, ["auth.jwt_algorithms"]),
        ({"JWT_ALGORITHMS": "RS256,HS256"}, ["auth.jwt_algorithms"]),
        ({"JWT_ROLE_MAP": "analysts=boss"}, ["auth.jwt_role_map"]),
    ],
    ids=str,
)
def test_web_tokens_are_believed_by_all_of_their_settings_or_not_at_all(given, wrong) -> None:
    found = problems({f"DUCKMESH_AUTH_{name}": value for name, value in given.items()})
    assert [problem.partition(" ")[0] for problem in found] == wrong
