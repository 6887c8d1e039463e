// What @lancedb/arrow-flight-sql-client does: queries, after a Basic handshake.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { randomUUID } from "node:crypto";
import { Client } from "@lancedb/arrow-flight-sql-client";

export const version = JSON.parse(
  readFileSync(new URL("./node_modules/@lancedb/arrow-flight-sql-client/package.json", import.meta.url)),
).version;

function connected(place, password = place.key) {
  const host = `${place.host}:${place.port}`;
  return Client.connect({ host, username: "anyone", password, insecure: true });
}

async function ask(client, sql) {
  return (await client.query(sql)).collectToObjects();
}

export async function case_user_and_password(place) {
  const rows = await ask(await connected(place), "SELECT 42 AS answer, 'x' AS text");
  assert.deepEqual(rows.map((row) => ({ ...row })), [{ answer: 42, text: "x" }]);
}

export async function case_wrong_key_is_refused(place) {
  await assert.rejects(async () => ask(await connected(place, "wrong"), "SELECT 1"));
}

export async function case_large_result_in_batches(place) {
  const client = await connected(place);
  const result = await client.query("SELECT i, repeat('x', 50) AS text FROM range(300000) r(i)");
  let rows = 0;
  for await (const batch of result.toArrowStream()) rows += batch.numRows;
  assert.equal(rows, 300000);
}

export async function case_types(place) {
  const [row] = await ask(
    await connected(place),
    "SELECT 1::BIGINT AS whole, 0.5::DOUBLE AS real, true AS yes, NULL::VARCHAR AS nothing",
  );
  assert.equal(row.whole, 1n);
  assert.equal(row.real, 0.5);
  assert.equal(row.yes, true);
  assert.equal(row.nothing, null);
}

export async function case_sql_errors_name_their_code(place) {
  const client = await connected(place);
  await assert.rejects(ask(client, "SELECT * FROM absent_table"), /TABLE_NOT_FOUND/);
  assert.equal((await ask(client, "SELECT 1 AS one")).length, 1);
}

export async function case_create_insert_and_read(place) {
  const table = `t_${randomUUID().replaceAll("-", "")}`;
  const client = await connected(place);
  await ask(client, `CREATE TABLE ${table} (id BIGINT, name VARCHAR)`);
  await ask(client, `INSERT INTO ${table} VALUES (1, 'a'), (2, 'b')`);
  const rows = await ask(client, `SELECT name FROM ${table} ORDER BY id`);
  assert.deepEqual(rows.map((row) => row.name), ["a", "b"]);
  await ask(client, `DROP TABLE ${table}`);
}
