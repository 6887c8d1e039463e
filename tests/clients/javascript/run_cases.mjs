// Runs the cases of a JavaScript client:
// `node run_cases.mjs MODULE RESULTS HOST PORT OPEN_PORT TLS_PORT CERTIFICATE KEY`.
// The module exports `version` and functions named `case_…`; results are lines of JSON.

import { appendFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [module, results, host, port, openPort, tlsPort, certificate, key] = process.argv.slice(2);
const ports = { port: Number(port), openPort: Number(openPort), tlsPort: Number(tlsPort) };
const place = { host, ...ports, certificate, key };

function tell(line) {
  appendFileSync(results, JSON.stringify(line) + "\n");
}

writeFileSync(results, "");
const client = await import(pathToFileURL(module));
tell({ version: client.version });
for (const [name, act] of Object.entries(client)) {
  if (!name.startsWith("case_")) continue;
  try {
    await act(place);
    tell({ case: name, failure: null });
  } catch (error) {
    tell({ case: name, failure: String(error?.stack ?? error) });
  }
}
// The clients keep their channels open.
process.exit(0);
