"""A client's append stream: batches go out, and a receipt comes back for each, in their order."""

import json
from typing import Any, Final

import pyarrow as pa
from pyarrow import flight

_OWN_CONNECTION: Final = [("grpc.use_local_subchannel_pool", 1)]


class AppendStream:
    """One `DoPut` that stays open. One thread sends; it, or another one, takes the receipts.

    Every call raises what the server answers, as pyarrow has it. What was sent and has no receipt
    when the stream breaks may be accepted, or not.
    """

    def __init__(
        self,
        uri: str,
        table: str,
        schema: pa.Schema,
        *,
        key: str | None = None,
        tls_root: str | None = None,
    ) -> None:
        """Open it on a connection of its own; `key` is the API key, `tls_root` a PEM."""
        shown = {} if tls_root is None else {"tls_root_certs": tls_root.encode()}
        self._client = flight.connect(uri, generic_options=_OWN_CONNECTION, **shown)
        headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
        self._writer, self._receipts = self._client.do_put(
            flight.FlightDescriptor.for_path(table),
            schema,
            flight.FlightCallOptions(headers=headers),
        )

    def send(self, batch: pa.RecordBatch) -> None:
        """Send one batch: a write of its own. Blocks while too many wait for their receipt."""
        self._writer.write_batch(batch)

    def finish(self) -> None:
        """Say that no more is sent; the receipts of what was sent still come."""
        self._writer.done_writing()

    def receipt(self) -> int | None:
        """The token of the next batch; None when all have theirs and nothing more is sent."""
        answer: Any = self._receipts.read()
        return None if answer is None else int(json.loads(answer.to_pybytes())["visibility_token"])

    def close(self) -> None:
        """End the call and the connection."""
        try:
            self._writer.close()
        finally:
            self._client.close()
