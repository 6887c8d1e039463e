"""Many clients of one tenant, each of which writes one small batch after another. A program.

Its arguments: the address, a key's secret, the clients and the seconds. It prints each acknowledged
write's milliseconds, as JSON.
"""

import json
import sys
import threading
import time

import pyarrow as pa
from pyarrow import flight

BATCH = pa.record_batch({"v": pa.array(range(10), pa.int64())})


def main(uri: str, secret: str, clients: int, seconds: float) -> None:
    took: list[float] = []
    ends = time.monotonic() + seconds

    def write_on() -> None:
        client = flight.connect(uri)
        options = flight.FlightCallOptions(
            headers=[client.authenticate_basic_token("x", secret)], timeout=60
        )
        while time.monotonic() < ends:
            began = time.perf_counter()
            descriptor = flight.FlightDescriptor.for_path("t")
            writer, reader = client.do_put(descriptor, BATCH.schema, options)
            with writer:
                writer.write_batch(BATCH)
                writer.done_writing()
                reader.read()
            took.append((time.perf_counter() - began) * 1000)

    threads = [threading.Thread(target=write_on) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.write(json.dumps(sorted(took)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
