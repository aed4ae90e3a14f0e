// Which reader has a scan: take it or release it, and see who has it.

import { ask } from "./api.js";
import { briefly, byId, keepFocus, outside, personName, say, show } from "./dom.js";

let me = { name: "", isPerson: false, isAdmin: false };
let job = null; // the scan that is shown
let whenChanged = () => {};

/** `changed()`: a scan was taken or released. */
export function startReader(changed) {
  whenChanged = changed;
  byId("take").addEventListener("click", () => send("PUT"));
  byId("release").addEventListener("click", () => send("DELETE"));
}

/** Only a named person takes a scan; an administrator may release every scan. */
export function allowReader({ name = "", role, person }) {
  me = { name, isPerson: role !== "read" && Boolean(person), isAdmin: role === "admin" };
}

export const isMine = ({ reader }) => Boolean(reader) && reader.by === me.name;

export function closeReader() {
  job = null;
  show(byId("reader"), false);
  say(byId("reader-refused"), "");
}

export function showReader(shown) {
  if (job?.id !== shown.id) say(byId("reader-refused"), "");
  job = shown;
  const { reader } = job;
  const isOwn = isMine(job);
  show(byId("reader"), Boolean(reader) || me.isPerson);
  byId("reader").classList.toggle("others", Boolean(reader) && !isOwn);
  const since = reader ? [" since ", briefly(reader.at), "."] : [];
  const text = JSON.stringify(reader);
  if (byId("reader-says").dataset.text !== text) {
    byId("reader-says").dataset.text = text;
    byId("reader-says").replaceChildren(...(!reader ? ["Nobody has taken this scan."] : isOwn ? ["You have this scan", ...since] : [outside(personName(reader.person)), " has this scan", ...since]));
  }
  const focused = document.activeElement;
  show(byId("take"), me.isPerson && !reader);
  show(byId("release"), Boolean(reader) && (isOwn || me.isAdmin));
  keepFocus(focused, byId("take"), byId("release"), byId("reader-says"));
}

/** Takes or releases the scan that is shown, for a keyboard shortcut. */
export function takeOrRelease() {
  for (const id of ["take", "release"]) {
    if (byId(id).checkVisibility()) {
      byId(id).click();
      return;
    }
  }
}

async function send(method) {
  const { id } = job;
  say(byId("reader-refused"), "");
  try {
    const changed = await ask(`jobs/${id}/reader`, { method });
    if (job?.id === id) showReader({ ...job, ...changed });
    whenChanged();
  } catch (error) {
    if (error.code === "E_SCAN_TAKEN") whenChanged();
    if (job?.id === id) say(byId("reader-refused"), error.text ?? String(error));
  }
}
