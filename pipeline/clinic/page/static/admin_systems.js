// The systems that the clinic exchanges data with, and the deliveries that did not arrive.

import { announce, does, rowButton, when } from "./admin_shared.js";
import { ask, Refused } from "./api.js";
import { byId, element, outside, table } from "./dom.js";

const NAMES = {
  search: "PACS, to search and fetch scans",
  receiver: "Receiver of scans that the PACS sends",
  pacs: "PACS, for results",
  fhir: "FHIR server, for results",
  hl7: "Receiver of HL7 messages, for results",
};
const KINDS = { dicomweb: "DICOMweb", dimse: "DICOM", fhir: "FHIR R4", hl7: "HL7 v2", node: "settings of the node" };
const TARGETS = { pacs: "PACS", fhir: "FHIR", hl7: "HL7" };
const STATES = { failed: "failed", waiting: "waits" };

export async function openSystems() {
  byId("systems-found").replaceChildren(); // a test that was started in rows of before would show nothing
  const [{ connections }, { deliveries }] = await Promise.all([ask("connections"), ask("deliveries")]);
  const headings = ["System", "Address", "TLS", "Sent", "Waiting", "Failed", "Last sent", "Test"];
  byId("systems-found").replaceChildren(table("Systems", headings, connections.map(system)));
  drawDeliveries({ deliveries });
}

function system({ name, kind, address, encrypted, deliveries, last_sent_at: last }) {
  if (!kind) return [NAMES[name], element("span", { className: "soft" }, "not set up"), "–", "–", "–", "–", "–", "–"];
  const isTarget = name in TARGETS;
  const count = (state) => (isTarget ? String(deliveries[state] ?? 0) : "–");
  const result = element("span", { role: "status" });
  return [
    NAMES[name],
    element("span", {}, `${KINDS[kind]} `, element("code", {}, address)),
    encrypted ? "yes" : element("span", { className: "flag" }, "no"),
    count("sent"),
    count("waiting"),
    deliveries.failed ? element("span", { className: "bad" }, count("failed")) : count("failed"),
    isTarget ? when(last) : "–",
    does(rowButton("Test", NAMES[name], () => test(name, result)), result),
  ];
}

async function test(name, result) {
  result.textContent = "…";
  try {
    const told = await ask(`connections/${name}/test`, { method: "POST" });
    result.className = told.responds ? "good" : "bad";
    result.textContent = told.responds ? "Responds." : new Refused(0, told).text;
  } catch (error) {
    result.textContent = "";
    throw error;
  }
}

function drawDeliveries({ deliveries }) {
  const headings = ["Scan", "To", "State", "Attempts", "Why", "Next attempt", "Actions"];
  byId("deliveries-found").replaceChildren(
    deliveries.length ? table("Deliveries", headings, deliveries.map(delivery)) : element("p", {}, "None."),
  );
}

function delivery({ answer_id: answer, job_id: job, target, state, attempts, code, due_at: due }) {
  return [
    element("a", { href: `./#/scans/${job}` }, job.slice(0, 12)),
    TARGETS[target],
    element("span", { className: state === "failed" ? "bad" : "" }, STATES[state]),
    String(attempts),
    code ? outside(code) : "–",
    when(due),
    does(
      rowButton("Send again", `${TARGETS[target]}, scan ${job.slice(0, 12)}`, async () => {
        await ask(`answers/${answer}/send?target=${target}`, { method: "POST" });
        drawDeliveries(await ask("deliveries"));
        announce("The delivery is queued again.");
      }),
    ),
  ];
}
