// The page: signing in and out, which scan is shown, and the connections between the modules.

import { allow, announcement, closeScan, openScan, showJob, startAnswer } from "./answer.js";
import { ask, onSignedOut } from "./api.js";
import { startAudit } from "./audit.js";
import { byId, outside, say, show } from "./dom.js";
import { startCompare } from "./compare.js";
import { goDecide } from "./decide.js";
import { startIncoming } from "./incoming.js";
import { showKeys, startKeys } from "./keys.js";
import { fade, nextOverlay } from "./overlays.js";
import { allowPacs, openPacs, startPacs } from "./pacs.js";
import { takeOrRelease } from "./reader.js";
import { startRefused } from "./refused.js";
import { endSignIn, offerSignIn, startSignIn } from "./sign_in.js";
import { startViewer } from "./viewer.js";
import { nextWindow } from "./windowing.js";
import { choose, neighbour, refresh, startWorklist, stopWorklist } from "./worklist.js";

const SCAN = /^#\/scans\/([0-9a-f]{32})$/;
const SIGN_IN = /^#token=(.+)$/; // in the URL that `serve` prints; browsers do not send what follows #

const SEEN_MS = 10000; // how long a message stays

let fading = null;
let signOutUrl = ""; // of the hospital's provider of identities

// --- signing in and out ---------------------------------------------------------------------------

async function begin() {
  const [, token] = SIGN_IN.exec(location.hash) ?? [];
  if (token) {
    history.replaceState(null, "", "#/"); // a token must not stay in the history
    await signIn(decodeURIComponent(token));
    return;
  }
  try {
    signedIn((await endSignIn()) ?? (await ask("session")));
  } catch (error) {
    signedOut(error.code === "E_NO_TOKEN" || error.code === "E_TOKEN" ? "" : error.text);
  }
}

async function signIn(token) {
  say(byId("sign-in-refused"), "");
  try {
    signedIn(await ask("session", { method: "POST", json: { token } }));
  } catch (error) {
    signedOut(error.text ?? String(error));
  }
}

function signedIn(session) {
  signOutUrl = session.sign_out_url;
  show(byId("show-admin"), session.role === "admin");
  byId("token").value = "";
  byId("who-asks").replaceChildren(Object.assign(outside(session.name), { title: session.name })); // a long name is shortened
  allow(session);
  allowPacs(session);
  show(byId("sign-in"), false);
  for (const id of ["session", "desk"]) show(byId(id), true);
  refresh();
  follow();
}

function signedOut(text = "") {
  stopWorklist();
  closeScan();
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  for (const id of ["session", "desk"]) show(byId(id), false);
  const wasHidden = byId("sign-in").hidden;
  show(byId("sign-in"), true);
  offerSignIn();
  say(byId("sign-in-refused"), text);
  if (wasHidden) byId("token").focus();
}

// --- which scan is shown --------------------------------------------------------------------------

const inAddress = () => SCAN.exec(location.hash)?.[1];

function follow() {
  const id = inAddress();
  document.body.classList.toggle("one-scan", Boolean(id)); // a narrow screen shows the scan instead of the list
  choose(id);
  if (id) openScan(id);
  else closeScan();
}

/** A scan was accepted. Show it, unless another one is open. */
function arrived(job) {
  refresh();
  if (!inAddress()) location.hash = `#/scans/${job.id}`;
  announce("The scan is in the queue.");
}

function announce(text) {
  clearTimeout(fading);
  byId("live").textContent = text;
  fading = setTimeout(() => (byId("live").textContent = ""), SEEN_MS);
}

function step(by) {
  const id = neighbour(by);
  if (id) location.hash = `#/scans/${id}`;
}

onSignedOut(() => signedOut());
startAnswer();
startViewer();
startRefused();
startCompare();
startWorklist({ changed: showJob, ended: (jobs) => announce(announcement(jobs)) });
startIncoming(arrived);
startPacs(arrived);
startAudit();
startSignIn(signedOut);
startKeys({
  "?": showKeys,
  j: () => step(1),
  k: () => step(-1),
  u: () => byId("choose-files").click(),
  "/": openPacs,
  s: () => byId("find-text").focus(),
  i: () => byId("tiles").focus(),
  o: nextOverlay,
  "[": () => fade(-10),
  "]": () => fade(10),
  l: () => byId("outlined").click(),
  w: nextWindow,
  d: () => byId("measure").click(),
  a: () => goDecide("accept"),
  c: () => goDecide("correct"),
  x: () => goDecide("reject"),
  m: () => byId("mask-unusable").checkVisibility() && byId("mask-unusable").focus(),
  t: takeOrRelease,
  v: () => byId("open-viewer").hidden || byId("open-viewer").click(),
  p: () => byId("pcr-form").querySelector("input").focus(),
});
byId("sign-in-form").addEventListener("submit", (event) => {
  event.preventDefault();
  signIn(byId("token").value.trim());
});
byId("sign-out").addEventListener("click", async () => {
  await ask("session", { method: "DELETE" }).catch(() => {});
  signedOut();
  if (signOutUrl) location.assign(signOutUrl);
});
addEventListener("hashchange", () => byId("desk").hidden || follow());
begin();
