"""One run of the `duckmesh` command: its common flags, its settings, its errors."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from command_line.failures import INTERRUPTED, failure_of
from duckmesh.settings import LogLevel, Settings, load_settings
from duckmesh.telemetry import configure_logging


@dataclass(frozen=True, slots=True)
class Invocation:
    """The flags in front of the command."""

    config: Path | None = None
    profile: str | None = None
    verbose: bool = False

    def settings(self, **flags: Any) -> Settings:
        """The settings with the command's own flags; `flight__port` stands for `flight.port`.

        Read when a command asks, so that `--help` works beside a wrong settings file. Raises
        Invalid (SETTINGS_INVALID).
        """
        overrides = {name.replace("__", "."): value for name, value in flags.items()}
        if self.verbose:
            overrides["logging.level"] = LogLevel.DEBUG
        return load_settings(profile=self.profile, config_file=self.config, overrides=overrides)

    def tool_settings(self, **flags: Any) -> Settings:
        """The settings of a command that prints and ends; it logs errors alone, unless asked."""
        settings = self.process_settings("duckmesh", **flags)
        if not self.verbose:
            # Libraries that set a level of their own speak in spite of ours.
            logging.disable(logging.WARNING)
        return settings

    def process_settings(self, service: str, **flags: Any) -> Settings:
        """The settings of a command that stays; it logs as they say."""
        settings = self.settings(**flags)
        configure_logging(settings.logging, service=service, profile=settings.profile)
        return settings


class DuckMeshGroup(click.Group):
    """A group whose commands end with a message and an exit code, never with a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            found = ctx.find_object(Invocation)
            raise failure_of(error, verbose=bool(found and found.verbose)) from error
