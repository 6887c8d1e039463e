CREATE INDEX view_def_of_tenant ON view_def (tenant_id, end_snapshot);
CREATE INDEX table_def_of_tenant ON table_def (tenant_id, end_snapshot);
DROP INDEX view_def_lifetime;
DROP INDEX table_def_lifetime;
