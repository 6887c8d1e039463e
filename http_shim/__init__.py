"""The HTTP door: JSON, NDJSON, CSV, Arrow and Parquet over one gateway."""
