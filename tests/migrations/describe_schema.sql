-- name: columns
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
       a.attgenerated, a.attstorage, pg_get_expr(d.adbin, d.adrelid)
FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
ORDER BY 1, 2

-- name: relations
SELECT relname, relkind, relpersistence, reloptions
FROM pg_class WHERE relnamespace = 'public'::regnamespace
ORDER BY 1, 2

-- name: constraints
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
ORDER BY 1, 2

-- name: indexes
SELECT tablename, indexname, indexdef
FROM pg_indexes WHERE schemaname = 'public'
ORDER BY 1, 2

-- name: functions
SELECT proname, pg_get_functiondef(oid)
FROM pg_proc WHERE pronamespace = 'public'::regnamespace
ORDER BY 1, 2

-- name: sequences
SELECT sequencename, data_type::text, start_value, increment_by, cycle, cache_size
FROM pg_sequences WHERE schemaname = 'public'
ORDER BY 1

-- name: triggers_and_types
SELECT 'trigger', tgname::text FROM pg_trigger WHERE NOT tgisinternal
UNION ALL
SELECT 'type', typname::text FROM pg_type
WHERE typnamespace = 'public'::regnamespace AND typtype IN ('e', 'd', 'r')
ORDER BY 1, 2
