"""What the Flight door counts of each call."""

import time
from typing import Any

from duckmesh import metrics
from duckmesh.errors import DuckMeshError
from flight_server.boundary import grpc_code


class CallCount:
    """Counts one call when it ends, under the status that the boundary gave it."""

    def __init__(self, method: Any) -> None:
        """`method` is pyarrow's FlightMethod: so the label is bounded."""
        self._method = str(method.name).lower()
        self._code = ""
        self._began = time.perf_counter()

    def failing(self, error: DuckMeshError) -> None:
        """The call will end with this error."""
        self._code = grpc_code(error).name

    def refused(self, error: DuckMeshError) -> None:
        """The call ended here, before its RPC began."""
        self.failing(error)
        self.ended(failed=True)

    def ended(self, *, failed: bool) -> None:
        """The call is over; what failed without passing the boundary is UNKNOWN."""
        code = self._code or ("UNKNOWN" if failed else metrics.OK)
        metrics.FLIGHT_REQUESTS.labels(self._method, code).inc()
        metrics.FLIGHT_SECONDS.labels(self._method).observe(time.perf_counter() - self._began)
