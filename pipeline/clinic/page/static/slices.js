// Single slices that the service draws. They are there at once, need no WebGL, and are what is printed.

import { address } from "./api.js";
import { element } from "./dom.js";
import { PLANES } from "./words.js";

const LEAST_MS = 60; // between two requests of one plane while somebody drags a slider

/** Where a slice lies in its plane, in words. */
export const placeOf = (index, { count, spacing_mm }) => `${index + 1} of ${count} · ${spacing_mm.toFixed(1)} mm`;

/** The pictures of one scan in the three figures of `tiles`. */
export class Slices {
  /** `base`: the address of its slices; `planes`: what the service says of each plane: count, letters. */
  constructor(tiles, base, planes) {
    this.base = base;
    this.drawn = {};
    for (const [plane, { letters }] of Object.entries(planes)) {
      const [scan, over] = [new Image(), new Image()];
      const figure = tiles.querySelector(`[data-plane="${plane}"]`);
      const edges = ["left", "right", "top", "bottom"];
      figure.replaceChildren(
        element(
          "div",
          { className: "picture" },
          scan,
          over,
          ...letters.map((letter, i) => element("span", { className: `letter ${edges[i]}`, ariaHidden: "true" }, letter)),
        ),
      );
      this.drawn[plane] = { scan, over, wanted: "", asked: "" };
    }
  }

  /** Show one slice; `overlay`: none, lungs or saliency; `opacity`: of the overlay, 0 to 1. */
  show(plane, index, overlay, opacity) {
    const drawn = this.drawn[plane];
    drawn.opacity = opacity;
    drawn.over.style.opacity = opacity;
    drawn.wanted = JSON.stringify([plane, index, overlay]);
    if (!drawn.isBusy) this.#load(drawn);
  }

  /** One request after the other, always for what is wanted by then. */
  async #load(drawn) {
    drawn.isBusy = true;
    while (drawn.asked !== drawn.wanted) {
      drawn.asked = drawn.wanted;
      const [plane, index, overlay] = JSON.parse(drawn.asked);
      const picture = (kind) => decoded(address(`${this.base}/${plane}/${index}.png?overlay=${kind}`));
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

  /** All pictures that were asked for are there. */
  async settled() {
    while (Object.values(this.drawn).some(({ isBusy }) => isBusy)) {
      await new Promise((resolve) => setTimeout(resolve, LEAST_MS));
    }
  }
}

/** A picture that is ready to be seen; an empty one where it cannot be had, rather than that of another slice. */
async function decoded(url) {
  const image = new Image();
  image.src = url;
  return image.decode().then(
    () => image,
    () => new Image(),
  );
}
