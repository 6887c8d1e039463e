"""What the Flight door counts of each call."""

import time
from functools import cache

from duckmesh import metrics
from duckmesh.counted import Count, Distribution
from duckmesh.errors import DuckMeshError
from flight_server.boundary import grpc_code
from grpc_transport.status import Status


class CallCount:
    """Counts one call when it ends, under the status that the boundary gave it."""

    def __init__(self, method: str) -> None:
        """`method` is the name of an RPC that there is: so the label is bounded."""
        self._method = method
        self._code = ""
        self._began = time.perf_counter()

    def failing(self, error: DuckMeshError) -> None:
        """The call will end with this error."""
        self._code = grpc_code(error).name

    def refused(self, error: DuckMeshError) -> None:
        """The call ended here, before its RPC began."""
        self.failing(error)
        self.ended(failed=True)

    def left(self) -> None:
        """Its caller has left before there was an answer."""
        self._code = Status.CANCELLED.name
        self.ended(failed=True)

    def ended(self, *, failed: bool) -> None:
        """The call is over; what failed without passing the boundary is UNKNOWN."""
        code = self._code or ("UNKNOWN" if failed else metrics.OK)
        _requests(self._method, code).inc()
        _seconds(self._method).observe(time.perf_counter() - self._began)


# Finding a child by its labels costs a small call more than moving it does.
@cache
def _requests(method: str, code: str) -> Count:
    return metrics.FLIGHT_REQUESTS.labels(method, code)


@cache
def _seconds(method: str) -> Distribution:
    return metrics.FLIGHT_SECONDS.labels(method)
