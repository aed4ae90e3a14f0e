// What is drawn over an image: the crosshair, a measured distance, outlines. It lies over slices and volumes alike.

const SVG = "http://www.w3.org/2000/svg";
const LETTER_PIXELS = 13;
const GAP_PIXELS = 10; // around the centre of the crosshair, to see what is there

function svg(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** The marks over one plane's picture of `columns` by `rows` pixels; points are shares of its width and height. */
export class Marks {
  constructor(picture, { columns, rows }) {
    Object.assign(this, { columns, rows });
    this.layers = { outlines: svg("g", { class: "outlines" }), crosshair: svg("g", { class: "crosshair" }), distance: svg("g", { class: "distance" }) };
    this.drawing = svg("svg", { class: "marks", viewBox: `0 0 ${columns} ${rows}`, "aria-hidden": "true" }, ...Object.values(this.layers));
    picture.append(this.drawing);
  }

  /** The point of the picture under the mouse, kept inside it. */
  pointAt({ clientX, clientY }) {
    const { x, y } = new DOMPoint(clientX, clientY).matrixTransform(this.drawing.getScreenCTM().inverse());
    const kept = (share) => Math.max(0, Math.min(1, share));
    return { x: kept(x / this.columns), y: kept(y / this.rows) };
  }

  /** Pixels of the picture for one pixel of the screen. */
  get #scale() {
    return 1 / (this.drawing.getScreenCTM()?.a || 1);
  }

  showCrosshair({ x, y }) {
    const [column, row, gap] = [x * this.columns, y * this.rows, GAP_PIXELS * this.#scale];
    const lines = [
      [0, row, column - gap, row],
      [column + gap, row, this.columns, row],
      [column, 0, column, row - gap],
      [column, row + gap, column, this.rows],
    ];
    this.layers.crosshair.replaceChildren(...lines.map(([x1, y1, x2, y2]) => svg("line", { x1, y1, x2, y2 })));
  }

  /** Draws a measured distance; without `ends` it is removed. */
  showDistance(ends, text) {
    if (!ends) return this.layers.distance.replaceChildren();
    const [from, to] = ends.map(({ x, y }) => ({ x: x * this.columns, y: y * this.rows }));
    const size = LETTER_PIXELS * this.#scale;
    const isRight = to.x > this.columns * 0.7; // the text stays inside the picture
    const at = { x: to.x + (isRight ? -size : size) / 2, y: Math.max(size, to.y - size / 2), "font-size": size, "text-anchor": isRight ? "end" : "start" };
    const label = svg("text", at, text);
    const points = [from, to].map(({ x, y }) => svg("circle", { cx: x, cy: y, r: 2.5 * this.#scale }));
    return this.layers.distance.replaceChildren(svg("line", { x1: from.x, y1: from.y, x2: to.x, y2: to.y }), ...points, label);
  }

  /** Draws outlines, each a `path` on a grid with a `colour` and the `transform` of the grid to shares of the picture. */
  showOutlines(outlines, opacity) {
    this.layers.outlines.style.opacity = opacity;
    this.layers.outlines.replaceChildren(
      ...outlines.map(({ path, colour, transform: [a, d, e, f] }) =>
        svg("path", {
          d: path,
          stroke: colour,
          transform: `matrix(${a * this.columns} 0 0 ${d * this.rows} ${e * this.columns} ${f * this.rows})`,
        }),
      ),
    );
  }
}
