// Models: which one is live, which one runs in shadow, how well the two agree, and where they differ.

import { announce, confirmed, does, rowButton, scrolling, when } from "./admin_shared.js";
import { ask } from "./api.js";
import { byId, element, outside, percent, roughly, table } from "./dom.js";
import { LABELS, LEVELS } from "./words.js";

const ROLES = { live: "live", shadow: "in shadow" };
const short = (sha256) => element("code", { title: sha256 }, sha256.slice(0, 12));
const title = (label) => LABELS[label]?.title ?? label;

export async function openModels() {
  await draw(await ask("models"));
}

async function draw({ models }) {
  const headings = ["Study", "Model", "Role", "Signature", "Answers", "Added", "Actions"];
  byId("models-found").replaceChildren(
    models.length ? table("Models", headings, models.map(row)) : element("p", {}, "No model was added yet."),
  );
  const compared = models.filter((model) => model.beside_live);
  const found = await Promise.all(compared.map((model) => ask(`models/${model.sha256}/disagreements`)));
  byId("shadow-found").replaceChildren(...compared.flatMap((model, index) => shadow(model, found[index].disagreements)));
}

function row(model) {
  const study = element("span", {}, outside(model.study));
  if (model.trained_on_synthetic_data) study.append(element("span", { className: "flag" }, " synthetic data: not valid for patients"));
  const name = short(model.sha256);
  return [
    study,
    model.derived_from ? element("span", {}, name, " adapted here from ", short(model.derived_from)) : name,
    model.role ? ROLES[model.role] : "–",
    model.signed_by ? short(model.signed_by) : element("span", { className: "flag" }, "not checked"),
    String(model.answers),
    element("span", {}, when(model.added_at), " by ", outside(model.added_by)),
    actions(model),
  ];
}

function actions({ sha256, study, role, beside_live: beside }) {
  if (role === "live") return does();
  const path = `models/${sha256}`;
  const change = async (method, address, told) => {
    await draw(await ask(address, { method }));
    announce(told);
  };
  return does(
    role === "shadow"
      ? rowButton("End shadow", study, () => change("DELETE", `${path}/shadow`, "No model runs in shadow."))
      : rowButton("Run in shadow", study, () => change("POST", `${path}/shadow`, "The model runs in shadow from the next scan on.")),
    beside
      ? rowButton("Make live", study, async () => {
          const says = `It answers from the next scan on. It was compared on ${beside.scans} ${beside.scans === 1 ? "scan" : "scans"}. Earlier answers keep their model.`;
          if (await confirmed(`Make ${study} live`, says, "Make live")) await change("POST", `${path}/promote`, "The model is live.");
        })
      : null,
  );
}

function shadow({ study, sha256, beside_live: { scans, agreement, mean_difference: difference } }, disagreements) {
  const signed = (share) => `${share > 0 ? "+" : ""}${(share * 100).toFixed(1)} points`;
  const said = ({ probability, level }) => `${percent(probability)}${level ? `, ${LEVELS[level]}` : ""}`;
  const rows = Object.keys(agreement).map((label) => [title(label), roughly(agreement[label]), signed(difference[label])]);
  return [
    element("h4", {}, "In shadow: ", outside(study), " ", short(sha256)),
    element("p", { className: "soft" }, `${scans} ${scans === 1 ? "scan was" : "scans were"} scored by both models. Clinicians do not see the answers of a shadow model.`),
    scrolling(table("Agreement", ["Label", "Same level", "Mean difference, shadow minus live"], rows)),
    disagreements.length
      ? scrolling(
          table(
            "Scans with another level",
            ["Scan with another level", "Label", "Live", "Shadow"],
            disagreements.map((each) => [
              element("a", { href: `./#/scans/${each.job_id}` }, when(each.at)),
              title(each.label),
              said(each.live),
              said(each.shadow),
            ]),
          ),
        )
      : element("p", {}, "Both models gave the same level to each scan."),
  ];
}
