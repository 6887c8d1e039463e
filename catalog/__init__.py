"""The truth: tenants, keys, tables, snapshots, files, watermarks and leases, in Postgres. Floor 2."""
