"""The rows that are written: the same ones in every run."""

from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa

SEED: Final = 20_261_121
_WORDS: Final = pa.array([f"station-{number:04d}" for number in range(1000)])
_EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)

ROW_SCHEMA: Final = pa.schema(
    [
        ("id", pa.int64()),
        ("measured_at", pa.timestamp("us", tz="UTC")),
        ("device", pa.int32()),
        ("site", pa.string()),
        ("kind", pa.string()),
        ("value", pa.float64()),
        ("error", pa.float64()),
        ("valid", pa.bool_()),
        ("count", pa.int32()),
        ("note", pa.string()),
    ]
)
"""Ten mixed columns; a row of them has about 100 bytes."""

ROW_COLUMNS_SQL: Final = (
    "id bigint, measured_at timestamptz, device integer, site text, kind text, "
    "value double precision, error double precision, valid boolean, count integer, note text"
)

BULK_SCHEMA: Final = pa.schema(
    [
        ("id", pa.int64()),
        ("measured_at", pa.timestamp("us", tz="UTC")),
        ("device", pa.int32()),
        ("site", pa.string()),
        ("value", pa.float64()),
        ("valid", pa.bool_()),
    ]
)


def one_row(number: int) -> tuple[Any, ...]:
    """Row `number` as Python values, in the order of ROW_SCHEMA."""
    return (
        number,
        _EPOCH,
        number % 997,
        f"site-{number % 50:03d}",
        "temperature",
        number * 0.25,
        0.125,
        number % 2 == 0,
        number % 31,
        "measured in the shade, at two metres",
    )


def one_row_batch(number: int) -> pa.RecordBatch:
    """Row `number` as a batch of ROW_SCHEMA."""
    columns = [
        pa.array([value], field.type)
        for value, field in zip(one_row(number), ROW_SCHEMA, strict=True)
    ]
    return pa.record_batch(columns, schema=ROW_SCHEMA)


def bulk_rows(rows: int) -> pa.Table:
    """`rows` rows of BULK_SCHEMA in batches of 65,536, drawn with SEED."""
    random = np.random.default_rng(SEED)
    start_us = int(_EPOCH.timestamp() * 1_000_000)
    columns = [
        pa.array(np.arange(rows, dtype=np.int64)),
        pa.array(start_us + np.arange(rows, dtype=np.int64) * 1000, pa.timestamp("us", tz="UTC")),
        pa.array(random.integers(0, 10_000, rows, dtype=np.int32)),
        _WORDS.take(pa.array(random.integers(0, len(_WORDS), rows))),
        pa.array(random.normal(20, 5, rows)),
        pa.array(random.random(rows) < 0.9),
    ]
    table = pa.table(columns, schema=BULK_SCHEMA)
    return pa.Table.from_batches(table.to_batches(max_chunksize=65_536), schema=BULK_SCHEMA)
