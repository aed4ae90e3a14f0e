// The mouse on the images, the same with single slices and in the full viewer: wheel, and drags with either button.

const NOTCH = 100; // pixels of scrolling for one slice; a trackpad sends many small steps
const RIGHT = 2;

const planeAt = (event) => event.target.closest?.("[data-plane]")?.dataset.plane;

/** Moves through the slices with the mouse wheel; `move(plane, by)`: towards the head, the back or the left. */
export function onWheel(tiles, move) {
  let rest = 0;
  tiles.addEventListener(
    "wheel",
    (event) => {
      const plane = planeAt(event);
      if (!plane || event.ctrlKey) return; // with Ctrl it is the browser's zoom
      event.preventDefault();
      rest -= event.deltaMode === 0 ? event.deltaY : Math.sign(event.deltaY) * NOTCH;
      const steps = Math.trunc(rest / NOTCH);
      rest -= steps * NOTCH;
      if (steps) move(plane, steps);
    },
    { passive: false },
  );
}

/**
 * Follows a pointer that is pressed on an image until it is released, also outside of the image.
 *
 * `left(plane, event, isStart)`: pressed, or moved while pressed. `right()`: pressed with the right button; returns what
 * to do with the pixels that it has moved since, or null.
 */
export function onDrag(tiles, { left, right }) {
  let follow = null;
  tiles.addEventListener("pointerdown", (event) => {
    const plane = planeAt(event);
    if (!plane || (event.button !== 0 && event.button !== RIGHT)) return;
    if (event.button === RIGHT) {
      const by = right();
      follow = by && ((moved) => by(moved.clientX - event.clientX, moved.clientY - event.clientY));
    } else {
      follow = (moved) => left(plane, moved, false);
      left(plane, event, true);
    }
    tiles.setPointerCapture(event.pointerId);
  });
  tiles.addEventListener("pointermove", (event) => follow?.(event));
  for (const end of ["pointerup", "pointercancel"]) tiles.addEventListener(end, () => (follow = null));
  tiles.addEventListener("contextmenu", (event) => event.preventDefault());
  tiles.addEventListener("dragstart", (event) => event.preventDefault()); // of a picture
}
