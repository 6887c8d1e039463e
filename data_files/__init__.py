"""Rows as bytes: inline payloads (Arrow IPC messages) and Parquet data files. Floor 2."""
