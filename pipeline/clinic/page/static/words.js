// The page's terms. Codes and texts of refusals come from the service and are not repeated here.

export const LABELS = {
  severe: {
    title: "Severe course",
    meaning: "Intubation or death within 30 days of the CT, in patients with a positive PCR",
  },
  pcr_positive: { title: "Positive PCR", meaning: "A positive PCR for SARS-CoV-2 around the time of the CT" },
};

export const LEVELS = { low: "Low", intermediate: "Intermediate", high: "High", uncertain: "Uncertain" };

export const SYNTHETIC = "This model was trained on synthetic data. Its result is not valid for patients.";

export const VERDICTS = { accepted: "Accepted", corrected: "Corrected", rejected: "Rejected" };

/** Why a reader corrects or rejects a result: the codes of the service, in the order of the buttons. */
export const REASONS = {
  level: "Level does not fit the images",
  clinical: "Level does not fit the clinical picture",
  lungs: "Outline of the lungs is wrong",
  missed: "Opacities were missed",
  overcalled: "Counted what is no opacity",
  other_disease: "Another disease",
  image_quality: "Image quality",
  wrong_scan: "Wrong scan or patient",
  other: "Another reason",
};

/** Systems that get results. */
export const SYSTEMS = { pacs: "PACS", fhir: "FHIR server", hl7: "HL7 receiver" };

export const STATES = {
  waiting: "Waiting",
  working: "Being scored",
  answered: "Answered",
  no_score: "No score",
};

export const CHECKS = {
  slices: "Slices",
  slice_distance: "Distance between slices",
  pixel_spacing: "Pixel spacing",
  other_series: "Other series left out",
  unreadable_files: "Files that could not be read",
  reader: "Reading",
  lungs: "Lung volume",
  lungs_cut: "Lungs cut at an end or a side",
  hu_shift: "Applied HU correction",
  lungs_agree: "Agreement of two methods of finding the lungs",
  unsure_border: "Dense tissue probably on the wrong side of the lungs' border, share of both lungs",
  lungs_height: "Height of the lungs",
  smaller_lung: "Smaller lung, share of both lungs",
  metal: "Metal in the chest",
  air: "Density of the air around the patient",
  age: "Age",
  sex: "Sex",
};

/** Returns the name of a check; an unknown check is shown by its identifier. */
export const checkName = (name) => CHECKS[name] ?? name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");

export const SEXES = { F: "female", M: "male" };

export const PLANES = { axial: "Axial", coronal: "Coronal", sagittal: "Sagittal" };

export const OVERLAYS = {
  none: "None",
  lungs: "Lungs",
  opacities: "Dense lung",
  reader_lungs: "Lungs, by hand",
  reader_opacities: "Dense lung, by hand",
  saliency: "Where the model looked",
};

/** The brushes with which a reader corrects the mask, in the order of their keys. */
export const BRUSHES = {
  right: { title: "Right lung", says: "Adds to the right lung. Dense voxels in it count, but not in its outermost layer." },
  left: { title: "Left lung", says: "Adds to the left lung. Dense voxels in it count, but not in its outermost layer." },
  outside: { title: "Not lung", says: "Erases from the lungs." },
  counts: { title: "Counts as dense", says: "Inside the lungs: dense voxels count, also in the outermost layer and in vessels. Their HU decide as what." },
  never: { title: "Does not count", says: "Inside the lungs: counts as no opacity, such as a vessel or an artefact. It stays lung." },
};

export const READER = "reader_"; // how the overlays of a mask begin that a reader corrected by hand

export const WINDOWS = { lung: "Lung", soft: "Mediastinum", bone: "Bone" };
export const WINDOWS_HU = { lung: [-1350, 150], soft: [-160, 240], bone: [-450, 1050] };
export const OWN_WINDOW = "own"; // none of these

export const KEYS = [
  ["?", "show these keys"],
  ["j, k", "next and previous scan of the worklist"],
  ["u", "add files"],
  ["s", "search the worklist"],
  ["/", "choose a scan from the PACS"],
  ["i", "go to the images"],
  ["↑ ↓", "in the images: axial slices; Page Up and Page Down move ten slices"],
  ["← →", "in the images: sagittal slices"],
  ["Shift ↑ ↓", "in the images: coronal slices"],
  ["Mouse wheel", "over an image: its slices"],
  ["Left button", "on an image: the other planes go there"],
  ["Right button", "drag over an image: window; to the right wider, up brighter"],
  ["o", "next overlay"],
  ["l", "outlines or areas of the dense parts"],
  ["[ ]", "fade the overlay"],
  ["w", "next window; level and width can be typed beside it"],
  ["d", "measure a distance: drag over an image, or Enter in the images at each of its ends"],
  ["a, c, x", "go to: accept the result, correct it, reject it"],
  ["m", "go to: the mask of the lungs is not usable"],
  ["1 to 5", "in the mask: brushes; + and - change their size, h hides the mask"],
  ["Space", "in the mask: paint; arrow keys move the brush, and paint with Shift"],
  ["Page Up, Page Down", "in the mask: slices; with Shift ten slices"],
  ["Ctrl Z, Ctrl Y", "in the mask: undo, redo"],
  ["t", "take the scan that is shown, or release it"],
  ["v", "open the scan in the hospital's viewer"],
  ["p", "enter a PCR result"],
];
