// Choosing a scan from the PACS: search for series, and score one of them.

import { ask } from "./api.js";
import { byId, day, element, outside, personName, say, show, table } from "./dom.js";

let isThere = false; // whether the clinic has a PACS to search

/** Shows the button only if there is a PACS to search. */
export function allowPacs(session) {
  isThere = session.searches_pacs && session.role !== "read";
  show(byId("choose-pacs"), isThere);
}

/** `arrived(job)`: called when the service has queued a series. */
export function startPacs(arrived) {
  byId("choose-pacs").addEventListener("click", openPacs);
  byId("pacs-form").addEventListener("submit", (event) => {
    event.preventDefault();
    search(new FormData(event.target), arrived);
  });
}

export function openPacs() {
  if (isThere) byId("pacs").showModal();
}

async function search(form, arrived) {
  const query = new URLSearchParams([...form].filter(([, value]) => value.trim() !== ""));
  say(byId("pacs-refused"), "");
  byId("pacs-found").replaceChildren();
  if (![...query].length) {
    say(byId("pacs-says"), "Enter a patient ID, an accession number or dates.");
    return;
  }
  say(byId("pacs-says"), "Searching…");
  try {
    draw(await ask(`pacs/series?${query}`), arrived);
  } catch (error) {
    say(byId("pacs-says"), "");
    say(byId("pacs-refused"), error.text ?? String(error));
  }
}

function draw({ series, complete }, arrived) {
  const more = complete ? "" : " The PACS has more: refine the search.";
  say(byId("pacs-says"), series.length === 0 ? "No CT series found." : `${series.length} series found.${more}`);
  if (!series.length) return;
  const rows = series.map((each) => [
    element("span", {}, outside(personName(each.patient_name) || "No name"), " ", outside(each.patient_id)),
    each.study_date ? day(each.study_date) : "–",
    outside([each.body_part, each.description].filter(Boolean).join(" · ") || "–"),
    String(each.images ?? "–"),
    scoreButton(each, arrived),
  ]);
  byId("pacs-found").replaceChildren(table("Series found in the PACS", ["Patient", "Date", "Series", "Images", "Choose"], rows));
}

function scoreButton(series, arrived) {
  const label = `Score ${series.description || "this series"}, ${series.images ?? "unknown number of"} images`;
  const button = element("button", { type: "button", ariaLabel: label }, "Score");
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const { study_uid, series_uid } = series;
      const job = await ask("pacs/scans", { method: "POST", json: { study_uid, series_uid } });
      byId("pacs").close();
      arrived(job);
    } catch (error) {
      say(byId("pacs-refused"), error.text ?? String(error));
      button.disabled = false;
    }
  });
  return button;
}
