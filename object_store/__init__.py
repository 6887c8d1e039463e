"""Where immutable files lie: a directory, S3, or any fsspec URL. Floor 2."""
