// A scan without a score: its images beside the reason, and the measures of its lungs, which need no model.

import { ask } from "./api.js";
import { byId, element, say, show } from "./dom.js";
import { showMeasures, showQuality } from "./facts.js";
import { openViewer, readyToPrint } from "./viewer.js";

export function startRefused() {
  byId("state-print").addEventListener("click", async () => {
    await readyToPrint();
    print();
  });
}

export function closeRefused() {
  byId("refused-measures").replaceChildren();
  byId("refused-quality").replaceChildren();
  say(byId("refused-flagged"), "");
  show(byId("refused"), false);
}

/** Shows the slices of a job without a score, if it has any. `isCurrent`: whether the job is still open. */
export async function showRefused(job, isCurrent) {
  if (!job.has_pictures) return;
  const base = `jobs/${job.id}`;
  const { lungs, quality } = await ask(`${base}/lungs`);
  if (!isCurrent()) return;
  show(byId("refused"), true);
  show(byId("refused-lungs"), Boolean(lungs));
  if (lungs) {
    showMeasures(byId("refused-measures"), lungs);
    showChecks(quality);
  }
  await openViewer({ base, lungs }, byId("refused"), isCurrent);
}

/** Shows the checks of the lungs; scans that an earlier version measured have none. */
function showChecks(quality) {
  const [box, flagged] = [byId("refused-quality"), byId("refused-flagged")];
  if (quality) {
    showQuality(box, flagged, quality, "shares of dense lung");
    return;
  }
  box.replaceChildren(element("p", { className: "soft" }, "Not checked: an earlier version measured the lungs."));
  show(flagged, false);
}
