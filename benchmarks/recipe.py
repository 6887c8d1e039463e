"""The streaming recipe: small batches of vehicles' measurements, and nine aggregates over them.

Published with DuckLake's data inlining: 30,000 batches of 10 rows.
"""

from datetime import UTC, datetime
from typing import Final

import numpy as np
import pyarrow as pa

from benchmarks.data import SEED

ROWS_PER_BATCH: Final = 10
_EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
_GEARS: Final = ("P", "R", "N", "D")
_STATES: Final = ("autonomous", "assisted", "manual", "charging", "fault")

MEASUREMENTS: Final = pa.schema(
    [
        ("measured_at", pa.timestamp("us")),
        ("vehicle_id", pa.int32()),
        ("trip_id", pa.int64()),
        ("gear", pa.string()),
        ("state", pa.string()),
        ("braking", pa.bool_()),
        ("obstacles", pa.int32()),
        ("lidar_points", pa.int32()),
        *(
            (name, pa.float64())
            for name in (
                "latitude",
                "longitude",
                "altitude",
                "speed",
                "heading",
                "acceleration_x",
                "acceleration_y",
                "acceleration_z",
                "rotation_x",
                "rotation_y",
                "rotation_z",
                "battery",
                "motor_temperature",
                "cabin_temperature",
                "odometer",
            )
        ),
    ]
)
"""23 columns."""

NINE_AGGREGATES: Final = (
    "SELECT count(*) AS n FROM {}",
    "SELECT min(measured_at) AS first, max(measured_at) AS last FROM {}",
    "SELECT avg(speed) AS mean, max(speed) AS most, stddev(speed) AS spread FROM {}",
    "SELECT vehicle_id, count(*) AS n, avg(speed) AS mean FROM {} GROUP BY vehicle_id",
    "SELECT state, count(*) AS n, avg(battery) AS mean FROM {} GROUP BY state",
    "SELECT gear, max(motor_temperature) AS most FROM {} GROUP BY gear",
    "SELECT count(*) AS n, sum(obstacles) AS seen FROM {} WHERE braking AND speed > 25",
    "SELECT date_trunc('minute', measured_at) AS minute, avg(speed) AS mean FROM {} GROUP BY 1",
    "SELECT trip_id, sum(odometer) AS way FROM {} GROUP BY trip_id ORDER BY way DESC LIMIT 10",
)


def measurements(rows: int) -> pa.Table:
    """`rows` rows of MEASUREMENTS, drawn with the seed of all benchmarks."""
    random = np.random.default_rng(SEED)
    begin_us = int(_EPOCH.timestamp() * 1_000_000)
    vehicles = random.integers(0, 200, rows, dtype=np.int32)
    columns = [
        pa.array(begin_us + np.arange(rows, dtype=np.int64) * 10_000, pa.timestamp("us")),
        pa.array(vehicles),
        pa.array(vehicles.astype(np.int64) * 1000 + random.integers(0, 5, rows)),
        pa.array(_GEARS).take(pa.array(random.integers(0, len(_GEARS), rows))),
        pa.array(_STATES).take(pa.array(random.integers(0, len(_STATES), rows))),
        pa.array(random.random(rows) < 0.1),
        pa.array(random.integers(0, 30, rows, dtype=np.int32)),
        pa.array(random.integers(0, 100_000, rows, dtype=np.int32)),
    ]
    floats = len(MEASUREMENTS) - len(columns)
    columns += [pa.array(random.normal(20, 8, rows)) for _ in range(floats)]
    return pa.table(columns, schema=MEASUREMENTS)
