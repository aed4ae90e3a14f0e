// Single slices drawn by the service. They appear at once, need no WebGL, and are used for printing.

import { address } from "./api.js";
import { element } from "./dom.js";
import { Marks } from "./marks.js";
import { PLANES, READER } from "./words.js";

const LEAST_MS = 60; // between two requests of one plane while somebody drags a slider

/** Describes the position of a slice in its plane. */
export const placeOf = (index, { count, spacing_mm }) => `${index + 1} of ${count} · ${spacing_mm.toFixed(1)} mm`;

/** The pictures of one scan in the three figures of `tiles`. */
export class Slices {
  /** `base`: the URL of its slices; `planes`: the service's description of each plane. */
  constructor(tiles, base, planes) {
    this.base = base;
    this.drawn = {};
    for (const [plane, about] of Object.entries(planes)) {
      const [scan, over] = [new Image(), new Image()];
      const figure = tiles.querySelector(`[data-plane="${plane}"]`);
      const edges = ["left", "right", "top", "bottom"];
      const letters = about.letters.map((letter, i) => element("span", { className: `letter ${edges[i]}`, ariaHidden: "true" }, letter));
      const picture = element("div", { className: "picture" }, scan, over, ...letters);
      figure.replaceChildren(picture);
      this.drawn[plane] = { scan, over, wanted: "", asked: "", marks: new Marks(picture, about) };
    }
  }

  /** What is drawn over a plane's picture. */
  marks(plane) {
    return this.drawn[plane].marks;
  }

  /** Shows one slice; `overlay`: as in OVERLAYS of words.js; `opacity`: of the overlay, 0 to 1; `window`: as windowQuery returns it. */
  show(plane, index, overlay, opacity, window) {
    const drawn = this.drawn[plane];
    drawn.opacity = opacity;
    drawn.over.style.opacity = opacity;
    drawn.wanted = JSON.stringify([plane, index, overlay, window]);
    if (!drawn.isBusy) this.#load(drawn);
  }

  /** Sends one request at a time, always for the slice that is wanted at that moment. */
  async #load(drawn) {
    drawn.isBusy = true;
    while (drawn.asked !== drawn.wanted) {
      drawn.asked = drawn.wanted;
      const [plane, index, overlay, window] = JSON.parse(drawn.asked);
      const picture = (kind) => decoded(address(`${this.base}/${plane}/${index}.png?${query(kind)}&window=${window}`));
      const [scan, over] = await Promise.all([picture("none"), overlay === "none" ? new Image() : picture(overlay)]);
      scan.alt = `${PLANES[plane]} slice ${index + 1}`;
      Object.assign(over, { alt: "", className: "over", hidden: overlay === "none" });
      over.style.opacity = drawn.opacity;
      drawn.scan.replaceWith(scan);
      drawn.over.replaceWith(over);
      Object.assign(drawn, { scan, over });
      await new Promise((resolve) => setTimeout(resolve, LEAST_MS));
    }
    drawn.isBusy = false;
  }

  /** Resolves when all requested pictures are loaded. */
  async settled() {
    while (Object.values(this.drawn).some(({ isBusy }) => isBusy)) {
      await new Promise((resolve) => setTimeout(resolve, LEAST_MS));
    }
  }
}

/** The part of the URL that names an overlay; those of a mask that the reader corrected begin with READER. */
const query = (kind) => (kind.startsWith(READER) ? `overlay=${kind.slice(READER.length)}&mask=reader` : `overlay=${kind}`);

/** Loads a picture; returns an empty one if that fails, so that no other slice is shown in its place. */
async function decoded(url) {
  const image = new Image();
  image.src = url;
  return image.decode().then(
    () => image,
    () => new Image(),
  );
}
