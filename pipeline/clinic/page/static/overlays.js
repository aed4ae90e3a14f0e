// The choice of an overlay, what its colours mean, and how it is drawn.

import { byId, element, personName, show } from "./dom.js";
import { saliencyText } from "./facts.js";
import { LABELS, OVERLAYS, READER } from "./words.js";

/** The colours of the service's slices. */
export const COLOURS = { lungs: "rgb(0 200 255)", glass: "rgb(255 200 60)", consolidation: "rgb(214 30 120)" };
export const maskOf = (overlay) => overlay.replace(READER, "");

/** `changed`: called when another overlay, its fading or its outlines are chosen. */
export function startOverlays(changed) {
  byId("fade").addEventListener("input", changed);
  for (const id of ["overlays", "outlined"]) byId(id).addEventListener("change", changed);
}

/** Offers the overlays of a scan (as `openViewer` takes it); shows the map at first, if there is one. */
export function offerOverlays({ score, lungs, decision }) {
  const byHand = decision?.correction.mask ? ["reader_lungs", "reader_opacities"] : [];
  const offered = ["none", ...(score || lungs ? ["lungs"] : []), ...(lungs?.are_marked ? ["opacities"] : []), ...byHand, ...(score?.saliency?.shown ? ["saliency"] : [])];
  const fieldset = byId("overlays");
  const first = offered.at(-1) === "saliency" ? "saliency" : "none";
  fieldset.replaceChildren(
    fieldset.querySelector("legend"),
    ...offered.map((value) => element("label", {}, element("input", { type: "radio", name: "overlay", value, checked: value === first }), ` ${OVERLAYS[value]}`)),
  );
}

export const overlay = () => byId("overlays").querySelector(":checked")?.value ?? "none";
export const opacity = () => Number(byId("fade").value) / 100;
export const isOutlined = () => maskOf(overlay()) === "lungs" || (maskOf(overlay()) === "opacities" && byId("outlined").checked);

/** The overlay as the service's slices name it. */
export const drawnOverlay = () => (maskOf(overlay()) === "opacities" && isOutlined() ? overlay().replace("opacities", "opacity_outlines") : overlay());

/** Selects the next overlay. */
export function nextOverlay() {
  const choices = [...byId("overlays").querySelectorAll("input")];
  choices[(choices.findIndex(({ checked }) => checked) + 1) % choices.length]?.click();
}

export function fade(by) {
  const slider = byId("fade");
  slider.value = Number(slider.value) + by;
  slider.dispatchEvent(new Event("input"));
}

const swatch = (name) => element("span", { className: `swatch ${name}`, ariaHidden: "true" });
const band = ([low, high]) => `${low} to ${high} HU`;

/** Says what the colours mean. */
export function sayOverlay({ lungs, score, decision }) {
  const chosen = overlay();
  byId("fade").disabled = chosen === "none";
  show(byId("outlined-label"), maskOf(chosen) === "opacities");
  const by = chosen.startsWith(READER) ? [`Corrected by hand by ${personName(decision.person)}. `] : [];
  const { ground_glass: glass, consolidation } = lungs?.bands_hu ?? {};
  const counted = () => [swatch("glass"), `Ground glass, ${band(glass)} `, swatch("consolidation"), `Consolidation, ${band(consolidation)}. Counted in the table.`];
  const says = {
    none: () => [score && !score.saliency?.shown ? saliencyText(score, "") : ""],
    lungs: () => [swatch("lungs"), "The lungs as detected: if the outline is wrong, the numbers may be wrong too."],
    opacities: counted,
    reader_lungs: () => [swatch("lungs"), ...by, "The lungs."],
    reader_opacities: () => [...by, ...counted()],
    saliency: () => [swatch("saliency"), saliencyText(score, LABELS[score.saliency?.label]?.title ?? "")],
  };
  byId("overlay-says").replaceChildren(...says[chosen]());
}
