// What @gizmodata/gizmosql-client does.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { randomUUID } from "node:crypto";
import { FlightSQLClient } from "@gizmodata/gizmosql-client";

export const version = JSON.parse(
  readFileSync(new URL("./node_modules/@gizmodata/gizmosql-client/package.json", import.meta.url)),
).version;

async function connected(place, act, credentials = { username: "anyone", password: place.key }) {
  const client = new FlightSQLClient({
    host: place.host,
    port: place.port,
    plaintext: true,
    ...credentials,
  });
  try {
    return await act(client);
  } finally {
    await client.close();
  }
}

const rowsOf = (table) => table.toArray().map((row) => row.toJSON());

export async function case_user_and_password(place) {
  await connected(place, async (client) => {
    const rows = rowsOf(await client.execute("SELECT 42 AS answer, 'x' AS text"));
    assert.deepEqual(rows, [{ answer: 42, text: "x" }]);
  });
}

export async function case_bearer_token(place) {
  const act = async (client) => {
    assert.equal((await client.execute("SELECT * FROM range(1000)")).numRows, 1000);
  };
  await connected(place, act, { token: place.key });
}

export async function case_wrong_key_is_refused(place) {
  const act = (client) => client.execute("SELECT 1");
  await assert.rejects(connected(place, act, { username: "anyone", password: "wrong" }));
}

export async function case_tls(place) {
  const act = async (client) => {
    assert.equal((await client.execute("SELECT 1 AS one")).numRows, 1);
  };
  const login = { username: "anyone", password: place.key };
  await connected(place, act, {
    port: place.tlsPort,
    plaintext: false,
    tlsSkipVerify: true,
    ...login,
  });
}

export async function case_large_result(place) {
  await connected(place, async (client) => {
    const table = await client.execute(
      "SELECT i, repeat('x', 50) AS text FROM range(300000) r(i)",
    );
    assert.equal(table.numRows, 300000);
  });
}

export async function case_sql_info(place) {
  await connected(place, async (client) => {
    const info = await client.getSqlInfo();
    assert.equal(info.get(0), "duckmesh");
    assert.match(info.get(1), /^duckdb /);
    assert.equal(info.get(504), '"');
  });
}

export async function case_catalogs_and_schemas(place) {
  await connected(place, async (client) => {
    assert.ok((await client.getCatalogs()).includes("duckmesh"));
    const schemas = await client.getSchemas();
    assert.ok(schemas.some((each) => each.catalog === "duckmesh" && each.schema === "main"));
    assert.ok((await client.getTableTypes()).includes("TABLE"));
  });
}

export async function case_sql_errors_name_their_code(place) {
  await connected(place, async (client) => {
    await assert.rejects(client.execute("SELECT * FROM absent_table"), /TABLE_NOT_FOUND/);
  });
}

export async function case_create_insert_and_read(place) {
  const table = `t_${randomUUID().replaceAll("-", "")}`;
  await connected(place, async (client) => {
    await client.execute(`CREATE TABLE ${table} (id BIGINT NOT NULL, name VARCHAR)`);
    await client.execute(`INSERT INTO ${table} VALUES (1, 'a'), (2, NULL)`);
    const rows = rowsOf(await client.execute(`SELECT id, name FROM ${table} ORDER BY id`));
    assert.deepEqual(rows, [{ id: 1n, name: "a" }, { id: 2n, name: null }]);
    const tables = await client.getTables(undefined, undefined, table);
    assert.deepEqual(tables.map((each) => each.tableName), [table]);
    await client.execute(`DROP TABLE ${table}`);
  });
}
