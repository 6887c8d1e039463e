"""The truth, in Postgres: tenants, keys, tables, snapshots, files, watermarks, leases. Floor 2."""
