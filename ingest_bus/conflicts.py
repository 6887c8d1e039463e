"""Why an envelope is not accepted, in the same words for every bus."""

from duckmesh.errors import Conflict, ErrorCode
from duckmesh.tokens import VisibilityToken
from ingest_bus.envelope import Envelope


def key_conflict(envelope: Envelope, token: VisibilityToken) -> Conflict:
    """Its key was accepted with other rows, or to do something else with them."""
    return Conflict(
        ErrorCode.IDEMPOTENCY_CONFLICT,
        "this idempotency key was accepted with other rows, or in another mode: send the first "
        "write again to get its receipt, or use a new key for a new one",
        idempotency_key=envelope.idempotency_key,
        visibility_token=token,
    )
