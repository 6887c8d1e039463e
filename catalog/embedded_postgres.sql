-- name: database_exists
SELECT EXISTS (SELECT FROM pg_database WHERE datname = %(database)s);

-- name: create_database
CREATE DATABASE {database};
