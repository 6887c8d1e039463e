"""What holds for a process as a whole: its profile and its log."""

from enum import StrEnum

from pydantic import Field

from duckmesh.settings_groups.fields import Group


class Profile(StrEnum):
    """Where DuckMesh runs: it chooses the defaults, and `prod` refuses what is unsafe."""

    DEV = "dev"
    TEST = "test"
    PROD = "prod"


class LogLevel(StrEnum):
    """The least severe level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """`json`: one object a line, for machines. `console`: for people."""

    JSON = "json"
    CONSOLE = "console"


class LoggingSettings(Group):
    """What is logged to standard error, and how."""

    level: LogLevel = Field(
        default=LogLevel.INFO, description="The least severe level that is logged."
    )
    format: LogFormat = Field(
        default=LogFormat.JSON, description="One JSON object a line, or lines for people."
    )
