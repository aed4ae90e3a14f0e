// One scan: its answer, why it has none, or its state in the queue.

import { Refused, address, ask } from "./api.js";
import { briefly, byId, element, moment, outside, personName, say, show } from "./dom.js";
import { closeCompare } from "./compare.js";
import { allowDecide, closeDecide, showDecide, startDecide } from "./decide.js";
import { showDeliveries } from "./deliveries.js";
import { showFacts } from "./facts.js";
import { showHistory } from "./history.js";
import { closePcr, showPcr, startPcr } from "./pcr.js";
import { showProbabilities } from "./probability.js";
import { allowReader, closeReader, showReader, startReader } from "./reader.js";
import { closeRefused, showRefused } from "./refused.js";
import { closeViewer, openViewer, readyToPrint } from "./viewer.js";
import { SEXES, STATES } from "./words.js";
import { known, learnAnswer, refresh } from "./worklist.js";

const DELIVERY_MS = 3000;
const RESULTS = ["sr.dcm", "picture.dcm", "seg.dcm"]; // what is sent to the PACS

let current = null; // id of the job that is shown
let drawn = ""; // the job, as it was drawn last
let opening = 0; // counts openings: a response that belongs to an earlier opening is dropped, even of the same scan
let answer = null;
let mayScore = false;
let maySend = false;
let viewerUrl = ""; // template of the hospital's viewer
let sendsAll = false; // also what nobody accepted
let looking = null;

export function startAnswer() {
  startPcr(async (changed) => {
    answer = changed;
    learnAnswer(changed);
    refresh();
    showResult();
    await showHistory(answer, () => answer?.id === changed.id).catch(() => {});
  });
  startReader(refresh);
  startDecide({ decided: learn, changed: lookAgain });
  byId("send").addEventListener("click", sendToPacs);
  byId("print").addEventListener("click", async () => {
    await readyToPrint();
    print();
  });
}

/** Show the controls that a session may use: a reader may change nothing, and a clinic may have no PACS. */
export function allow({ name, role, person = "", sends_to_pacs: sendsToPacs, sends, viewer_url: viewer = "" }) {
  mayScore = role !== "read";
  maySend = mayScore && sendsToPacs;
  sendsAll = sends === "always";
  viewerUrl = viewer;
  allowDecide({ role, person });
  allowReader({ name, role, person });
  show(byId("pcr-form"), mayScore);
  show(byId("send"), maySend);
  show(byId("drop"), mayScore);
}

export function closeScan() {
  opening++;
  current = answer = null;
  drawn = "";
  clearTimeout(looking);
  closeViewer();
  closeRefused();
  closePcr();
  closeDecide();
  closeReader();
  closeCompare();
  for (const id of ["answer", "state"]) show(byId(id), false);
  show(byId("nothing"), true);
  document.title = "fedthorax";
}

/** Show a job by its id. */
export async function openScan(id) {
  closeScan();
  const mine = opening;
  current = id;
  show(byId("nothing"), false);
  try {
    const job = await ask(`jobs/${id}`);
    if (mine !== opening) return; // closed in the meantime, and perhaps opened again
    const newer = known(id); // the list may have been refreshed in the meantime
    await showJob(newer?.ended_at ? newer : job);
  } catch (error) {
    if (mine === opening) showState({ title: "This scan cannot be shown", says: error.text ?? String(error) });
  }
}

/** Show the state of a job; also called when it changes in the worklist. */
export async function showJob(job) {
  if (job.id !== current) return;
  const mine = opening;
  showReader(job);
  const asDrawn = [job.state, job.position, job.answer_id].join(" ");
  if (asDrawn === drawn) return; // drawing it again would move its images back to their first slices
  drawn = asDrawn;
  if (job.state === "answered") {
    const found = await ask(`answers/${job.answer_id}`).catch((error) => {
      drawn = "";
      throw error;
    });
    if (mine === opening) await showAnswer(found);
    return;
  }
  const place = job.position ? `Place ${job.position} in the queue. ` : "";
  const says = job.state === "no_score" ? `${capital(job.says)}.` : `${place}The answer appears here automatically.`;
  showState({
    title: job.state === "no_score" ? "No score" : STATES[job.state],
    patient: job.patient,
    says,
    remedy: job.remedy,
    code: job.code,
    isFinal: job.state === "no_score",
    times: job.ended_at ? ["Sent ", moment(job.received_at), " · no score given ", moment(job.ended_at)] : [],
  });
  await showRefused(job, () => mine === opening).catch(() => {}); // the pictures are optional
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function showState({ title, patient, says, remedy, code, isFinal = false, times = [] }) {
  show(byId("answer"), false);
  show(byId("state"), true);
  byId("state").classList.toggle("no-score", isFinal);
  say(byId("state-title"), title);
  byId("state-patient").replaceChildren(...(patient ? naming(patient) : []));
  say(byId("state-says"), says);
  say(byId("state-remedy"), remedy ?? "");
  say(byId("state-code"), code ?? "");
  byId("state-times").replaceChildren(...times);
  show(byId("state-acts"), isFinal);
}

const naming = (patient) => [outside(personName(patient.name) || "No name"), " · ", outside(patient.id)];

async function showAnswer(found) {
  answer = found;
  learnAnswer(answer); // it may have changed since the list was drawn
  show(byId("state"), false);
  const { patient, study, score, id } = answer;
  byId("patient-name").replaceChildren(outside(personName(patient?.name) || patient?.id || "The scan does not name a patient"));
  const years = patient?.age_years === null || patient?.age_years === undefined ? "" : `${Math.floor(patient.age_years)} years`;
  const facts = [SEXES[patient?.sex], years].filter(Boolean).join(", ");
  byId("patient-facts").replaceChildren("ID ", outside(patient?.id || "–"), facts ? ` · ${facts}` : "");
  byId("scan-facts").replaceChildren(
    ...(study.acquired_at ? ["CT of ", moment(study.acquired_at)] : ["Time of the CT unknown"]),
    ...(study.accession ? [" · accession ", outside(study.accession)] : []),
    " · scored ",
    moment(answer.created_at),
    " by ",
    outside(answer.model.name),
  );
  show(byId("synthetic"), score.trained_on_synthetic_data);
  show(byId("fhir"), !score.withheld);
  byId("fhir").href = address(`answers/${id}/risk-assessment`);
  show(byId("open-viewer"), Boolean(viewerUrl && study.study_uid));
  if (viewerUrl && study.study_uid) byId("open-viewer").href = filled(viewerUrl, { ...study, patient_id: patient?.id });
  say(byId("send-refused"), "");
  showResult();
  showFacts(answer);
  showDelivery();
  show(byId("answer"), true);
  const isCurrent = () => answer?.id === id;
  const whole = await Promise.allSettled([openViewer(scanOf(answer), byId("answer-images"), isCurrent), showHistory(answer, isCurrent)]);
  const failed = whole.find(({ status }) => status === "rejected");
  if (failed && isCurrent()) say(byId("viewer-says"), failed.reason.text ?? String(failed.reason));
}

/** Fills the names in braces of the viewer's address; values from headers are escaped. */
export const filled = (template, values) => template.replace(/{(\w+)}/g, (_, name) => encodeURIComponent(values[name] ?? ""));

function showResult() {
  showProbabilities(answer);
  showPcr(answer);
  showDecide(answer);
}

/** An answer as the viewer takes it. */
const scanOf = ({ id, score, decision, files }) => ({ base: `answers/${id}`, score, lungs: score.lungs, decision, files });

const maskOf = ({ decision }) => decision?.correction.mask && decision.id;

/** Shows the answer after a decision. */
function learn(changed) {
  const hasOtherMask = maskOf(answer) !== maskOf(changed);
  answer = changed;
  if (hasOtherMask) openViewer(scanOf(answer), byId("answer-images"), () => answer?.id === changed.id).catch(() => {}); // the slices are still there
  learnAnswer(changed);
  refresh();
  showResult();
  showFacts(answer);
  showDelivery();
  showHistory(answer, () => answer?.id === changed.id).catch(() => {}); // the decision is in its line
}

/** Shows the answer as it is now: it changed while it was shown. */
async function lookAgain() {
  const { id } = answer;
  const found = await ask(`answers/${id}`);
  if (answer?.id === id) learn(found);
}

// --- to the PACS --------------------------------------------------------------------------------

function showDelivery() {
  const { no_results: none, score, decision } = answer;
  const pacs = answer.pacs?.state === "dropped" ? null : answer.pacs;
  const says = byId("pacs-state");
  clearTimeout(looking);
  say(byId("no-results"), !pacs && maySend && none && !score.withheld ? new Refused(0, none).text : "");
  if (!pacs) {
    says.replaceChildren();
  } else if (pacs.state === "sent") {
    const what = pacs.decision_id ? "" : ", unverified";
    says.replaceChildren(decision?.verdict === "rejected" ? "Rejected in the PACS since " : "In the PACS since ", briefly(pacs.sent_at), what);
  } else {
    const tries = pacs.attempts ? `, ${pacs.attempts} ${pacs.attempts === 1 ? "try" : "tries"} so far (${pacs.code})` : "";
    say(says, pacs.state === "waiting" ? `Being sent to the PACS${tries}` : `The PACS did not accept it (${pacs.code})`);
  }
  const hasResults = answer.files.some((name) => RESULTS.includes(name));
  const isAccepted = decision ? decision.verdict !== "rejected" : sendsAll;
  const isDue = !pacs || pacs.state === "failed" || (pacs.decision_id ?? null) !== (decision?.id ?? null);
  show(byId("send"), maySend && hasResults && isAccepted && isDue && pacs?.state !== "failed");
  showDeliveries(answer, { maySend: mayScore, changed: lookAtDelivery });
  if (answer.deliveries.some(({ state }) => state === "waiting")) looking = setTimeout(lookAtDelivery, DELIVERY_MS, answer.id);
}

async function lookAtDelivery(id) {
  try {
    const found = await ask(`answers/${id}`);
    if (answer?.id !== id) return;
    if (found.revision !== answer.revision) learn(found);
    answer.pacs = found.pacs;
    answer.deliveries = found.deliveries;
    showDelivery();
  } catch {
    if (answer?.id === id) looking = setTimeout(lookAtDelivery, DELIVERY_MS, id);
  }
}

async function sendToPacs() {
  const { id } = answer;
  say(byId("send-refused"), "");
  try {
    await ask(`answers/${id}/send`, { method: "POST" });
    await lookAtDelivery(id);
  } catch (error) {
    if (answer?.id === id) say(byId("send-refused"), error.text ?? String(error));
  }
  refresh();
}

/** One sentence for screen readers. */
export function announcement([job, ...others]) {
  if (others.length) return `${others.length + 1} scans were answered or ended without a score.`;
  const whose = personName(job.patient?.name) || "a scan";
  return job.state === "answered" ? `Answered: ${whose}.` : `No score: ${whose}.`;
}
