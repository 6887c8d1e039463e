"""Why a dead letter is not replayed, in the same words for every bus."""

from duckmesh.errors import Conflict, ErrorCode, NotFound
from duckmesh.identifiers import SchemaVersion
from duckmesh.tokens import VisibilityToken


def not_dead(token: VisibilityToken) -> NotFound:
    return NotFound(
        ErrorCode.NOT_FOUND,
        f"token {token} is that of no dead letter: list them to see which there are",
        visibility_token=token,
    )


def fenced_off(token: VisibilityToken, min_schema_version: SchemaVersion) -> Conflict:
    return Conflict(
        ErrorCode.SCHEMA_INCOMPATIBLE,
        f"the table of dead letter {token} was given other columns since: write its rows again, "
        "as the columns are now",
        visibility_token=token,
        min_schema_version=min_schema_version,
    )
