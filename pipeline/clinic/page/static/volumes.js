// The scan as a volume in NiiVue, if NiiVue and WebGL 2 are available. The page has one instance.

import { address } from "./api.js";
import { byId, painted, show } from "./dom.js";
import { Outlines } from "./outlines.js";
import { COLOURS as RGB, maskOf } from "./overlays.js";
import { PLANES, READER, WINDOWS_HU } from "./words.js";

const NIIVUE = "./niivue.js"; // created by `make viewer`
const FILES = { image: "image.nii.gz", saliency: "saliency.nii.gz", opacities: "opacities.nii.gz" };
const MASKS = { lungs: "lungs.nii.gz", opacities: "opacities.nii.gz" }; // which a reader can correct by hand
const OUTLINE_COLOURS = { lungs: [RGB.lungs], opacities: [RGB.glass, RGB.consolidation] };
const COLOURS = { saliency: "saliency", opacities: "opacities" };
// The colours of the service's slices. NiiVue takes an alpha only as 0 or not; FADES makes a map fade with its value.
const SALIENCY = { R: [10, 90, 190, 245, 252], G: [0, 15, 55, 130, 255], B: [20, 110, 80, 20, 165], A: [0, 255, 255, 255, 255], I: [0, 64, 128, 191, 255] };
const FADES = 1; // of NiiVue's colormapType: the opacity is the square of the value's share of cal_min
const OPACITIES = { R: [0, 255, 214], G: [0, 200, 30], B: [0, 60, 120], A: [0, 255, 255], I: [0, 128, 255] };
const OPAQUE = { saliency: 0.75, opacities: 0.55 }; // as much as in the service's slices
const OVERLAYS = {
  saliency: { colormap: COLOURS.saliency, cal_min: 254, cal_max: 255, colormapType: FADES },
  opacities: { colormap: COLOURS.opacities, cal_min: 0, cal_max: 2 },
};

/** What the full viewer draws: kind and path, the scan first, the mask that a reader corrected last. */
function volumesOf({ base, files, decision }) {
  const own = Object.entries(FILES).filter(([, name]) => files.includes(name));
  const byHand = decision?.correction.mask ? [[`${READER}opacities`, `${base}/decisions/${decision.id}/files/${MASKS.opacities}`]] : [];
  return [...own.map(([kind, name]) => [kind, `${base}/files/${name}`]), ...byHand];
}

/** The masks whose outlines are drawn: path by overlay. */
function masksOf({ base, files, decision }) {
  const own = Object.entries(MASKS).filter(([, name]) => files.includes(name));
  const byHand = decision?.correction.mask ? Object.entries(MASKS) : [];
  return Object.fromEntries([
    ...own.map(([kind, name]) => [kind, `${base}/files/${name}`]),
    ...byHand.map(([kind, name]) => [READER + kind, `${base}/decisions/${decision.id}/files/${name}`]),
  ]);
}

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
    crosshairWidth: 0, // the page draws it, over slices and volumes
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
  made.addColormap(COLOURS.saliency, SALIENCY);
  made.addColormap(COLOURS.opacities, OPACITIES);
  shared = { niivue: made, SLICE_TYPE: niivue.SLICE_TYPE };
  return shared;
}

/** One scan's volumes on the canvas, and the outlines of its masks. Positions are those of geometry.js. */
export class Volumes {
  static async open(scan) {
    const { niivue, SLICE_TYPE } = await instance();
    const present = volumesOf(scan);
    const [low, high] = WINDOWS_HU.lung;
    await niivue.loadVolumes(
      present.map(([kind, path]) => ({
        url: new URL(address(path), document.baseURI).href,
        name: `${kind}.nii.gz`,
        ...(kind === "image" ? { colormap: "gray", cal_min: low, cal_max: high } : { ...OVERLAYS[maskOf(kind)], opacity: 0 }),
      })),
    );
    present.forEach(([kind], i) => Object.assign(niivue.volumes[i], OVERLAYS[maskOf(kind)] ?? {})); // loading leaves out the type
    const { dims, affine } = niivue.volumes[0].hdr;
    const masks = masksOf(scan);
    const colours = Object.fromEntries(Object.keys(masks).map((kind) => [kind, OUTLINE_COLOURS[maskOf(kind)]]));
    const outlines = await Outlines.open(masks, colours, { size: dims.slice(1, 4), affine });
    return new Volumes(niivue, SLICE_TYPE, present.map(([kind]) => kind), outlines);
  }

  constructor(niivue, sliceType, kinds, outlines) {
    Object.assign(this, { niivue, sliceType, kinds, outlines });
  }

  /** Places each view exactly where the service's slice lies in the figure of its plane. */
  arrange(planes) {
    const stage = byId("stage").getBoundingClientRect();
    const views = Object.keys(PLANES).map((plane) => {
      const tile = document.querySelector(`#tiles [data-plane=${plane}]`).getBoundingClientRect();
      const { columns, rows } = planes[plane];
      const scale = Math.min(tile.width / columns, tile.height / rows);
      const [width, height] = [columns * scale, rows * scale];
      const position = [
        (tile.left + (tile.width - width) / 2 - stage.left) / stage.width,
        (tile.top + (tile.height - height) / 2 - stage.top) / stage.height,
        (width / stage.width) * NEARLY,
        (height / stage.height) * NEARLY,
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
    const wanted = `${overlay} ${opacity}`;
    if (this.drawnOverlay === wanted) return; // moving must not upload the volumes again
    this.drawnOverlay = wanted;
    this.kinds.forEach((kind, i) => {
      if (i > 0) this.niivue.volumes[i].opacity = kind === overlay ? opacity * OPAQUE[maskOf(kind)] : 0;
    });
    this.niivue.updateGLVolume();
  }

  /** Resolves when the last drawing is on the screen, which takes time on a slow graphics card. */
  async drawn() {
    this.niivue.gl.finish();
    await painted();
  }

  setWindow([low, high]) {
    const [image] = this.niivue.volumes;
    if (image.cal_min === low && image.cal_max === high) return;
    [image.cal_min, image.cal_max] = [low, high];
    this.niivue.updateGLVolume();
  }
}
