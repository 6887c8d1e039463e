"""docs/configuration.md and .env.example, written from the settings themselves.

`python -m duckmesh.settings_reference` in the tree's root writes both; a test keeps them current.
"""

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Final

from pydantic.fields import FieldInfo

from duckmesh.settings import (
    CONFIG_FILE_VARIABLE,
    FIELDS,
    PROFILE_DEFAULTS,
    Profile,
    Settings,
    variable_of,
)
from duckmesh.settings_forms import accepted_form, is_secret

_INTRODUCTION: Final = f"""# Configuration

This file is generated from the settings in the code: `python -m duckmesh.settings_reference`.

A process reads its settings once, at start. The later source wins:

1. the defaults, with those of the profile;
2. `duckmesh.toml` in the working directory, or the file that `{CONFIG_FILE_VARIABLE}` names;
3. environment variables, `DUCKMESH_` and the key in capitals; an empty one counts as not set;
4. flags.

An unknown key, an unknown `DUCKMESH_` variable or a wrong value ends the process before it opens
a connection. The error names every problem at once, each with its source and the accepted form.
Secrets appear in no error, no log and no repr.
Variables that begin with `DUCKMESH_TEST_` belong to the test suite.

```toml
# duckmesh.toml
profile = "prod"

[catalog]
dsn = "postgresql://duckmesh:secret@db.example.com/duckmesh"

[store]
url = "s3://lake/duckmesh"
region = "eu-central-1"
```

## Profiles

| key | {" | ".join(f"`{profile}`" for profile in Profile)} |
|---|---|---|---|
"""

_PRODUCTION: Final = """
`prod` refuses to start with `auth.open_mode`, without `catalog.dsn`, without `store.url`, and when
`flight.host` or `http.host` is reachable from other machines without TLS (unless that door's
`allow_plaintext` is set). Its processes refuse a Postgres with `fsync` off, which may forget what
was acknowledged (unless `catalog.allow_fsync_off` is set).
"""


def configuration_page() -> str:
    """The text of docs/configuration.md."""
    return _INTRODUCTION + "".join(_profile_rows()) + _PRODUCTION + "".join(_sections())


def environment_example() -> str:
    """The text of .env.example: every variable, commented out, at its default."""
    lines = [
        "# Every setting as an environment variable, at its default. Generated from the code:",
        "# python -m duckmesh.settings_reference",
        "# Uncomment what you change. docs/configuration.md says more.",
        f"#{CONFIG_FILE_VARIABLE}=",
    ]
    for key, field in FIELDS.items():
        lines += ["", f"# {field.description}", f"# {accepted_form(field)}"]
        lines.append(f"#{variable_of(key)}={_example(field)}")
    return "\n".join(lines).replace("`", "'") + "\n"


def _profile_rows() -> Iterator[str]:
    varying = {key: None for defaults in PROFILE_DEFAULTS.values() for key in defaults}
    for key in (each for each in FIELDS if each in varying):
        usual = FIELDS[key].default
        cells = [_shown(PROFILE_DEFAULTS[profile].get(key, usual)) for profile in Profile]
        yield f"| `{key}` | {' | '.join(cells)} |\n"


def _sections() -> Iterator[str]:
    group = None
    for key, field in FIELDS.items():
        name = key.rpartition(".")[0]
        if name != group:
            group = name
            yield f"\n## {name or 'The process'}\n\n{_promise(name)}"
            yield "| key | meaning | accepted | default |\n|---|---|---|---|\n"
        secret = " A secret." if is_secret(field) else ""
        yield (
            f"| `{key}`<br>`{variable_of(key)}` | {field.description}{secret} "
            f"| {accepted_form(field)} | {_default(field)} |\n"
        )


def _promise(group: str) -> str:
    if not group:
        return ""
    return f"{Settings.model_fields[group].annotation.__doc__}\n\n"


def _default(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "default_text" in extra:
        return str(extra["default_text"])
    return _shown(field.default)


def _shown(value: Any) -> str:
    return "not set" if value is None else f"`{_plain(value)}`"


def _example(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if field.default is None or (isinstance(extra, dict) and extra):
        return ""
    return _plain(field.default)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.value if isinstance(value, Enum) else value)


def main(root: Path) -> None:
    """Write both files below `root`."""
    (root / "docs" / "configuration.md").write_text(configuration_page(), encoding="utf-8")
    (root / ".env.example").write_text(environment_example(), encoding="utf-8")


if __name__ == "__main__":
    main(Path.cwd())
