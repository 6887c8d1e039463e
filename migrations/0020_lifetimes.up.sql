-- The tables and views of an old snapshot are found without those that ended since, or came later.

-- GiST knows ranges and no plain numbers: the tenant is a range of one.
CREATE INDEX table_def_lifetime ON table_def USING gist (
    int8range(tenant_id, tenant_id, '[]'), int8range(begin_snapshot, end_snapshot));
CREATE INDEX view_def_lifetime ON view_def USING gist (
    int8range(tenant_id, tenant_id, '[]'), int8range(begin_snapshot, end_snapshot));

DROP INDEX table_def_of_tenant;
DROP INDEX view_def_of_tenant;
