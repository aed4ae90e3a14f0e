// The scan as a volume in NiiVue, if NiiVue and WebGL 2 are available. The page has one instance.

import { address } from "./api.js";
import { byId, painted, show } from "./dom.js";
import { READER } from "./slices.js";
import { PLANES } from "./words.js";

const NIIVUE = "./niivue.js"; // created by `make viewer`
const FILES = { image: "image.nii.gz", lungs: "lungs.nii.gz", saliency: "saliency.nii.gz", opacities: "opacities.nii.gz" };
const MASKS = ["lungs", "opacities"]; // which a reader can correct by hand
export const WINDOWS_HU = { lung: [-1350, 150], soft: [-160, 240], bone: [-450, 1050] };
const COLOURS = { lungs: "lungs", saliency: "saliency", opacities: "opacities" };
// The colours and the opacity of the service's slices; of the saliency, the lowest quarter is left out here.
const LUNGS = { R: [0, 0], G: [0, 200], B: [0, 255], A: [0, 255], I: [0, 255] };
const SALIENCY = {
  R: [90, 190, 245, 252],
  G: [15, 55, 130, 255],
  B: [110, 80, 20, 165],
  A: [0, 85, 135, 191],
  I: [0, 85, 170, 255],
};
const OPACITIES = { R: [0, 255, 214], G: [0, 200, 30], B: [0, 60, 120], A: [0, 140, 140], I: [0, 128, 255] };
const OVERLAYS = {
  lungs: { colormap: COLOURS.lungs, cal_min: 0, cal_max: 1 },
  saliency: { colormap: COLOURS.saliency, cal_min: 64, cal_max: 255 },
  opacities: { colormap: COLOURS.opacities, cal_min: 0, cal_max: 2 },
};

/** The volumes of an answer: kind and path. Those of a mask that the reader corrected come last. */
function pathsOf({ id, files, decision }) {
  const own = Object.entries(FILES).filter(([, name]) => files.includes(name));
  const byHand = decision?.correction.mask ? MASKS : [];
  return [
    ...own.map(([kind, name]) => [kind, `answers/${id}/files/${name}`]),
    ...byHand.map((kind) => [READER + kind, `answers/${id}/decisions/${decision.id}/files/${FILES[kind]}`]),
  ];
}

const drawnAs = (kind) => (kind.startsWith(READER) ? kind.slice(READER.length) : kind);
const NEARLY = 0.998; // adjacent views count as overlapping because of rounding

let shared = null;

export class NoViewer extends Error {}

/** Returns the page's instance. Throws NoViewer with the reason. */
async function instance() {
  if (shared) return shared;
  let niivue;
  try {
    niivue = await import(NIIVUE);
  } catch {
    throw new NoViewer("Single slices are shown. For the full viewer, the administrator of this service runs “make viewer” once.");
  }
  if (!document.createElement("canvas").getContext("webgl2")) {
    throw new NoViewer("Single slices are shown: this browser has no WebGL 2.");
  }
  const made = new niivue.Niivue({
    isRadiologicalConvention: true,
    sagittalNoseLeft: true,
    isColorbar: false,
    isOrientCube: false,
    isRuler: false,
    isOrientationTextVisible: false, // the page writes the letters, over slices and volumes
    isResizeCanvas: true,
    dragAndDropEnabled: false,
    crosshairColor: [0.55, 0.75, 0.95, 0.6],
    crosshairWidth: 0.8,
    crosshairWidthUnit: "mm",
    crosshairGap: 8,
    backColor: [0, 0, 0, 1],
    fontColor: [0.85, 0.9, 0.95, 1],
    loadingText: "",
    multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
    logLevel: "silent",
  });
  show(byId("stage"), true); // a hidden element has no size
  const canvas = byId("canvas");
  await made.attachToCanvas(canvas);
  canvas.removeAttribute("tabindex"); // the surrounding figures have the focus, and the page handles the keys
  show(byId("stage"), false);
  made.addColormap(COLOURS.lungs, LUNGS);
  made.addColormap(COLOURS.saliency, SALIENCY);
  made.addColormap(COLOURS.opacities, OPACITIES);
  shared = { niivue: made, SLICE_TYPE: niivue.SLICE_TYPE };
  return shared;
}

/** Keeps only the voxels of a mask with a neighbour outside it: a contour, where the whole mask would hide the lungs. */
export function keepShell(mask, [columns, rows, slices]) {
  const inside = mask.slice();
  const steps = [1, columns, columns * rows];
  for (let k = 1; k < slices - 1; k++)
    for (let j = 1; j < rows - 1; j++)
      for (let i = 1, at = columns * (j + rows * k) + 1; i < columns - 1; i++, at++)
        if (inside[at] && steps.every((step) => inside[at - step] && inside[at + step])) mask[at] = 0;
}

/** One answer's volumes on the canvas. Positions are shares from 0 to 1, towards left, back and head. */
export class Volumes {
  static async open(answer, moved) {
    const { niivue, SLICE_TYPE } = await instance();
    const present = pathsOf(answer);
    const [low, high] = WINDOWS_HU.lung;
    await niivue.loadVolumes(
      present.map(([kind, path]) => ({
        url: new URL(address(path), document.baseURI).href,
        name: `${kind}.nii.gz`,
        ...(kind === "image"
          ? { colormap: "gray", cal_min: low, cal_max: high }
          : { ...OVERLAYS[drawnAs(kind)], opacity: 0 }),
      })),
    );
    const outlines = present.flatMap(([kind], i) => (drawnAs(kind) === "lungs" ? [niivue.volumes[i]] : []));
    for (const { img, hdr } of outlines) keepShell(img, hdr.dims.slice(1, 4));
    niivue.updateGLVolume();
    return new Volumes(niivue, SLICE_TYPE, present.map(([kind]) => kind), moved);
  }

  constructor(niivue, sliceType, kinds, moved) {
    Object.assign(this, { niivue, sliceType, kinds });
    niivue.onLocationChange = () => {
      const [right, front, up] = niivue.scene.crosshairPos;
      moved({ sagittal: 1 - right, coronal: 1 - front, axial: up });
    };
  }

  /** Places each view over the figure of its plane; the style sheet places the figures. */
  arrange() {
    const stage = byId("stage").getBoundingClientRect();
    const views = Object.keys(PLANES).map((plane) => {
      const tile = document.querySelector(`#tiles [data-plane=${plane}]`).getBoundingClientRect();
      const position = [
        (tile.left - stage.left) / stage.width,
        (tile.top - stage.top) / stage.height,
        (tile.width / stage.width) * NEARLY,
        (tile.height / stage.height) * NEARLY,
      ];
      return { sliceType: this.sliceType[plane.toUpperCase()], position };
    });
    this.niivue.resizeListener();
    this.niivue.setCustomLayout(views);
  }

  move({ axial, coronal, sagittal }) {
    const { scene } = this.niivue;
    scene.crosshairPos = [1 - sagittal, 1 - coronal, axial];
    this.niivue.drawScene();
  }

  setOverlay(overlay, opacity) {
    this.kinds.forEach((kind, i) => {
      if (i > 0) this.niivue.volumes[i].opacity = kind === overlay ? opacity : 0;
    });
    this.niivue.updateGLVolume();
  }

  /** Resolves when the last drawing is on the screen, which takes time on a slow graphics card. */
  async drawn() {
    this.niivue.gl.finish();
    await painted();
  }

  setWindow(windowHu) {
    const [image] = this.niivue.volumes;
    [image.cal_min, image.cal_max] = windowHu;
    this.niivue.updateGLVolume();
  }
}
