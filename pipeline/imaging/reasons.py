"""Reasons why a file, a series or a volume is refused or flagged."""

from models.refusal import Reason

NO_IMAGES = Reason("E_NO_IMAGES", "no scan was found", "Give the folder, zip or files of one chest CT series.")
ARCHIVE_BROKEN = Reason(
    "E_ARCHIVE_BROKEN",
    "the zip cannot be opened: it is damaged, encrypted or packed in an unusual way",
    "Pack the series again as an ordinary zip without a password, or give the folder itself.",
)
ARCHIVE_RATIO = Reason(
    "E_ARCHIVE_RATIO",
    "the file would unpack to more than {ratio} times its size or more than {gigabytes} GB",
    "Pack one series alone, or give the folder itself.",
)
ARCHIVE_PATH = Reason(
    "E_ARCHIVE_PATH",
    "the zip holds a link or a path that leads out of its folder",
    "Pack plain files and folders; do not open this zip by other means unless you trust its sender.",
)
ARCHIVE_DEPTH = Reason(
    "E_ARCHIVE_DEPTH",
    "the zip holds another archive or more than {entries} entries",
    "Unpack it yourself and give the folder, or pack one series alone.",
)
NOT_DICOM = Reason(
    "E_NOT_DICOM",
    "a file is not DICOM",
    "Export the series again as DICOM files (PS3.10); remove what does not belong to it.",
)
PARSE = Reason(
    "E_PARSE",
    "a DICOM file cannot be read",
    "Check that this user may read the file; otherwise it is damaged: export the series again.",
)
MODALITY = Reason("E_MODALITY", "the images are not CT", "Choose the chest CT series of the examination.")
MODALITY_MISMATCH = Reason(
    "E_MODALITY_MISMATCH",
    "the files contradict themselves about being CT (Modality against SOP Class)",
    "Export the series again from the PACS; do not correct the headers by hand.",
)
MODALITY_EMPTY = Reason(
    "W_MODALITY_EMPTY",
    "Modality is missing; the SOP Class says CT",
    "Nothing to do; the export or a de-identification tool dropped it.",
)
MULTIFRAME = Reason(
    "E_MULTIFRAME",
    "several slices in one file (enhanced CT) are not supported",
    "Export the series as one file for each slice (CT Image Storage).",
)
LOCALIZER = Reason(
    "E_LOCALIZER", "the series holds a localizer (scout) image", "Choose the axial series of the examination."
)
NOT_AXIAL = Reason(
    "E_NOT_AXIAL",
    "the images are not original axial slices but derived, reformatted, captured or unlabelled",
    "Choose the original axial series; the ImageType must be ORIGINAL, PRIMARY, AXIAL.",
)
BURNED_IN = Reason(
    "E_BURNED_IN",
    "the images carry burned-in text, which may name the patient",
    "Choose the original series, without annotations in the pixels.",
)
PIXEL = Reason(
    "E_PIXEL",
    "the pixels are not described as those of a CT (one grey channel, 8 or 16 bits)",
    "Export the original series again, without conversion.",
)
TRANSFER_SYNTAX = Reason(
    "E_TRANSFER_SYNTAX",
    "the pixels are compressed in a way that cannot be read",
    "Export the series uncompressed or losslessly compressed (JPEG 2000, JPEG-LS, JPEG Lossless, RLE).",
)
RESCALE = Reason(
    "E_RESCALE",
    "the rescale to Hounsfield units is missing or impossible",
    "Export the original series; maps of energies or materials cannot be used.",
)
GEOMETRY = Reason(
    "E_GEOMETRY",
    "position, orientation or pixel spacing of a slice is missing or impossible",
    "Export the original series again; de-identification must keep the geometry.",
)
SPACING = Reason(
    "E_SPACING",
    "a distance between pixels or slices is {spacing_mm} mm; it must lie between {least_mm} and {most_mm} mm",
    "Choose a series with thinner slices, or export it again.",
)
MIXED_GEOMETRY = Reason(
    "E_MIXED_GEOMETRY",
    "the slices differ in size, orientation or pixel spacing",
    "Export one reconstruction as one series.",
)
DIMENSIONS = Reason(
    "E_DIMENSIONS",
    "the series claims {rows} x {columns} x {slices} voxels, more than can be handled",
    "Choose a series of the chest alone, or one with thicker slices.",
)
DUPLICATE_SLICE = Reason(
    "E_DUPLICATE_SLICE",
    "different images lie at one position ({duplicates} in the series)",
    "Several phases or reconstructions share one series: export one of them alone.",
)
DUPLICATE_SLICE_FLAGGED = Reason(
    "W_DUPLICATE_SLICE",
    "identical copies of slices were left out",
    "Nothing to do; the export holds files twice.",
)
SLICE_GAP = Reason(
    "E_SLICE_GAP",
    "{gaps} distances between slices differ from the usual {usual_mm} mm (up to {largest_mm} mm)",
    "Slices are missing or unevenly spaced: send the whole series again.",
)
SLICES_MISSING = Reason(
    "E_SLICES_MISSING",
    "of {step} slices only one is here: they lie {apart_mm} mm apart, and their numbers go up in steps of {step}",
    "The series did not come whole: send all of its images again.",
)
SLICES_MISSING_FLAGGED = Reason(
    "W_SLICES_MISSING",
    "slices may be missing: they lie further apart than the headers say, or their numbers go up in larger steps than 1",
    "Compare the number of images with that of the PACS; if there it is larger, send the whole series again.",
)
SLICES_APART = Reason(
    "W_SLICES_APART",
    "the slices lie further apart than they are thick: what lies between them is on none",
    "Prefer a series without gaps, if there is one; if the PACS has more images of this one, send it again.",
)
TILT = Reason(
    "E_TILT",
    "the slices are shifted sideways against each other: {degrees} degrees of gantry tilt, or a moved centre",
    "Choose a series without gantry tilt.",
)
OBLIQUE = Reason(
    "E_OBLIQUE", "the slices are {degrees} degrees from axial", "Choose the axial series of the examination."
)
TOO_FEW = Reason(
    "E_TOO_FEW",
    "{slices} slices are too few; a chest needs at least {least}",
    "Send all slices of the chest CT series.",
)
TRUNCATED = Reason(
    "E_TRUNCATED",
    "the pixels of a slice are missing or cut short",
    "The transfer broke off: send the series again.",
)
DECODE = Reason(
    "E_DECODE",
    "the pixels of a slice cannot be decoded",
    "The file is damaged: export the series uncompressed.",
)
HU_RANGE = Reason(
    "E_HU_RANGE",
    "values between {lowest_hu} and {highest_hu} are not Hounsfield units",
    "Export the original series; this one was converted, or is not CT.",
)
EMPTY_VOLUME = Reason(
    "E_EMPTY_VOLUME",
    "the scan shows nothing but air or one value",
    "Choose the chest CT series of the examination.",
)
PADDING = Reason(
    "W_PADDING",
    "one impossible value, which the files do not declare, was taken as air around the scan",
    "Nothing to do; many scanners fill the corners of the image so.",
)
LOSSY = Reason(
    "W_LOSSY",
    "the images were compressed with loss",
    "Prefer the original images; fine detail may be lost.",
)
CONTRAST = Reason(
    "W_CONTRAST",
    "a contrast agent was given",
    "Nothing to do; vessels are brighter than in a plain scan.",
)
THICK = Reason(
    "W_THICK",
    "the slices are thicker than 5 mm",
    "Prefer a series with thinner slices, if there is one.",
)
VOLUME_FILE = Reason(
    "E_VOLUME_FILE",
    "a NIfTI or MetaImage file cannot be read",
    "It is damaged or of another kind (NIfTI-1 and binary MetaImage are read): convert the scan again.",
)
NOT_ONE_VOLUME = Reason(
    "E_NOT_ONE_VOLUME",
    "the file does not hold one grey volume of real numbers",
    "Give the scan itself, in a file of its own: no series of volumes, no colours, no vectors.",
)
VOLUME_ELSEWHERE = Reason(
    "E_VOLUME_ELSEWHERE",
    "the header says that its voxels are in a file that is not beside it, or in several",
    "Convert the scan to one file (.mha), or put header and voxels into one folder.",
)
VOLUME_NAME = Reason(
    "E_VOLUME_NAME",
    "several volume files have one name, which stands for the patient",
    "Name each file after its patient; give a patient's first scan alone.",
)
NOT_A_NUMBER = Reason(
    "E_NOT_A_NUMBER",
    "some voxels hold no number",
    "Convert the original scan again, without masking or registering it.",
)
