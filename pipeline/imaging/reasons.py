"""Reasons why a file, a series or a volume is refused or flagged while it is read."""

from models.refusal import Reason

NO_IMAGES = Reason("E_NO_IMAGES", "no scan was found", "Give the folder, zip or files of one chest CT series.")
ARCHIVE_BROKEN = Reason(
    "E_ARCHIVE_BROKEN",
    "the zip cannot be opened: it is damaged, encrypted or uses an unusual compression",
    "Pack the series again as an ordinary zip without a password, or give the folder itself.",
)
ARCHIVE_RATIO = Reason(
    "E_ARCHIVE_RATIO",
    "the file would unpack to more than {ratio} times its size or more than {gigabytes} GB",
    "Pack only one series, or give the folder itself.",
)
ARCHIVE_PATH = Reason(
    "E_ARCHIVE_PATH",
    "the zip contains a link or a path that points outside its folder",
    "Pack only files and folders. Do not open this zip with other software unless you trust its sender.",
)
ARCHIVE_DEPTH = Reason(
    "E_ARCHIVE_DEPTH",
    "the zip contains another archive or more than {entries} entries",
    "Unpack it yourself and give the folder, or pack only one series.",
)
NOT_DICOM = Reason(
    "E_NOT_DICOM",
    "a file is not DICOM",
    "Export the series again as DICOM files (PS3.10), and remove files that do not belong to it.",
)
PARSE = Reason(
    "E_PARSE",
    "a DICOM file cannot be read",
    "Check that this user may read the file. If so, the file is damaged: export the series again.",
)
MODALITY = Reason("E_MODALITY", "the images are not CT", "Choose the chest CT series of the examination.")
MODALITY_MISMATCH = Reason(
    "E_MODALITY_MISMATCH",
    "Modality and SOP Class contradict each other: only one of them is CT",
    "Export the series again from the PACS. Do not correct the headers by hand.",
)
MODALITY_EMPTY = Reason(
    "W_MODALITY_EMPTY",
    "Modality is missing, but the SOP Class is CT",
    "No action is needed. The export or a de-identification tool removed Modality.",
)
MULTIFRAME = Reason(
    "E_MULTIFRAME",
    "a file has several frames without a valid description of each (functional groups)",
    "Export the series as Enhanced CT, or with one file for each slice (CT Image Storage).",
)
SEVERAL_VOLUMES = Reason(
    "E_SEVERAL_VOLUMES",
    "a multi-frame file contains more than one volume: {found}",
    "Export one phase or reconstruction as a series of its own.",
)
LOCALIZER = Reason(
    "E_LOCALIZER", "the series contains a localizer (scout) image", "Choose the axial series of the examination."
)
NOT_AXIAL = Reason(
    "E_NOT_AXIAL",
    "the images are not axial slices of a scan but reformatted, projected, captured, or of an unknown kind",
    "Choose the original axial series. Its ImageType is usually ORIGINAL, PRIMARY, AXIAL.",
)
DERIVED = Reason(
    "W_DERIVED",
    "the axial slices were derived from others, for example by a filter",
    "Prefer the original reconstruction, if there is one.",
)
IMAGE_TYPE = Reason(
    "W_IMAGE_TYPE",
    "ImageType is missing, or does not call the slices original and axial, or says that they were made after the "
    "examination; their geometry is that of axial slices",
    "Check in the pictures that this is an original chest CT, not a projection or a filtered series.",
)
BURNED_IN = Reason(
    "E_BURNED_IN",
    "the images contain burned-in text, which may name the patient",
    "Choose the original series, without annotations in the pixels.",
)
PIXEL = Reason(
    "E_PIXEL",
    "the pixel format is not that of a CT (one grey channel, 8 or 16 bits)",
    "Export the original series again, without conversion.",
)
TRANSFER_SYNTAX = Reason(
    "E_TRANSFER_SYNTAX",
    "the compression of the pixels is not supported: {syntax}",
    "Export the series uncompressed or losslessly compressed (JPEG 2000, JPEG-LS, JPEG Lossless, RLE).",
)
RESCALE = Reason(
    "E_RESCALE",
    "the rescale values for Hounsfield units are missing or impossible",
    "Export the original series. Energy maps and material maps cannot be used.",
)
GEOMETRY = Reason(
    "E_GEOMETRY",
    "position, orientation or pixel spacing of a slice is missing or impossible",
    "Export the original series again. De-identification must keep the geometry.",
)
SPACING = Reason(
    "E_SPACING",
    "a distance between pixels or slices is {spacing_mm} mm; it must be between {least_mm} and {most_mm} mm",
    "Choose a series with thinner slices, or export it again.",
)
MIXED_GEOMETRY = Reason(
    "E_MIXED_GEOMETRY",
    "the slices differ in size, orientation or pixel spacing",
    "Export each reconstruction as a series of its own.",
)
DIMENSIONS = Reason(
    "E_DIMENSIONS",
    "the headers state {rows} x {columns} x {slices} voxels, more than the limit",
    "Choose a series of the chest only, or one with thicker slices.",
)
DUPLICATE_SLICE = Reason(
    "E_DUPLICATE_SLICE",
    "different images have the same position ({duplicates} in the series)",
    "The series contains several phases or reconstructions: export only one of them.",
)
DUPLICATE_SLICE_FLAGGED = Reason(
    "W_DUPLICATE_SLICE",
    "identical copies of slices were skipped",
    "No action is needed. The export contains some files twice.",
)
SLICE_GAP = Reason(
    "E_SLICE_GAP",
    "distances between slices differ from the usual {usual_mm} mm ({gaps} of them, up to {largest_mm} mm; slices that "
    "seem to be missing: {missing}, after number {after} counted from the feet)",
    "Slices are missing or unevenly spaced. Send the whole series again.",
)
POSITIONS = Reason(
    "E_POSITIONS",
    "the slices are {apart_mm} mm apart by position, but {stated_mm} mm by SpacingBetweenSlices and SliceLocation",
    "The positions were changed, so volumes would be wrong. Export the original series again.",
)
POSITIONS_FLAGGED = Reason(
    "W_POSITIONS",
    "SpacingBetweenSlices or SliceLocation contradicts the positions of the slices",
    "Check in the pictures that the proportions of the chest are right. If not, export the original series again.",
)
SEVERAL_SCANS = Reason(
    "E_SEVERAL_SCANS",
    "the series contains images of several scans or patients: they differ in {attributes}",
    "Give the images of one scan only. Find out first why they were mixed.",
)
SLICES_MISSING = Reason(
    "E_SLICES_MISSING",
    "only one of every {step} slices is here: they are {apart_mm} mm apart and numbered in steps of {step}",
    "The series is incomplete. Send all of its images again.",
)
SLICES_MISSING_FLAGGED = Reason(
    "W_SLICES_MISSING",
    "slices may be missing: they are further apart than the headers say, or numbered in steps larger than 1",
    "Compare the number of images with the PACS. If the PACS has more, send the whole series again.",
)
SLICES_APART = Reason(
    "W_SLICES_APART",
    "the slices are further apart than they are thick: the scan does not show the tissue between them",
    "Prefer a series without gaps, if there is one. If the PACS has more images of this series, send it again.",
)
TILT = Reason(
    "E_TILT",
    "the slices are shifted sideways by distances that differ (up to {jump_mm} mm), or too far ({degrees} degrees)",
    "The centre of the images moves within the series. Export the original reconstruction.",
)
TILT_FLAGGED = Reason(
    "W_TILT",
    "the gantry was tilted: the slices were moved to their true places, with interpolation between pixels",
    "Prefer a series without gantry tilt, if there is one.",
)
OBLIQUE = Reason(
    "E_OBLIQUE", "the slices are tilted {degrees} degrees from axial", "Choose the axial series of the examination."
)
TOO_FEW = Reason(
    "E_TOO_FEW",
    "the scan has too few slices ({slices}); a chest needs at least {least}",
    "Send all slices of the chest CT.",
)
TRUNCATED = Reason(
    "E_TRUNCATED", "pixels of a slice are missing or cut short", "The transfer was interrupted. Send the series again."
)
DECODE = Reason(
    "E_DECODE", "the pixels of a slice cannot be decoded", "The file is damaged. Export the series again, uncompressed."
)
HU_RANGE = Reason(
    "E_HU_RANGE",
    "values between {lowest_hu} and {highest_hu} are not Hounsfield units",
    "Export the original series. This one was converted, or it is not CT.",
)
EMPTY_VOLUME = Reason(
    "E_EMPTY_VOLUME", "the scan contains only air or only one value", "Choose the chest CT series of the examination."
)
BLANK_SLICES = Reason(
    "E_BLANK_SLICES",
    "slices between others show nothing ({blank} of them): all their voxels have one value",
    "Send the series again. If its images in the PACS are blank too, it cannot be used.",
)
SEAM = Reason(
    "W_SEAM",
    "two neighbouring slices differ so much that the scan may consist of two",
    "Check in the pictures from the side that the body is whole. If not, find out why scans were mixed.",
)
PADDING = Reason(
    "W_PADDING",
    "an impossible value, not declared as padding, was treated as air around the scan",
    "No action is needed. Many scanners fill the corners of the image with one value.",
)
LOSSY = Reason(
    "W_LOSSY", "the images were compressed with loss", "Prefer the original images. Fine detail may be lost."
)
CONTRAST = Reason(
    "W_CONTRAST",
    "a contrast agent was given",
    "No action is needed. Vessels are brighter than in a scan without contrast agent.",
)
THICK = Reason("W_THICK", "the slices are thicker than 5 mm", "Prefer a series with thinner slices, if there is one.")
VOLUME_FILE = Reason(
    "E_VOLUME_FILE",
    "a NIfTI or MetaImage file cannot be read",
    "It is damaged or has another format (NIfTI-1 and binary MetaImage are supported). Convert the scan again.",
)
NOT_ONE_VOLUME = Reason(
    "E_NOT_ONE_VOLUME",
    "the file does not contain exactly one grey volume of real numbers",
    "Give one scan in one file: no series of volumes, no colours, no vectors.",
)
VOLUME_ELSEWHERE = Reason(
    "E_VOLUME_ELSEWHERE",
    "the header refers to voxels in a file that is not in the same folder, or in several files",
    "Convert the scan to one file (.mha), or put the header and its one voxel file into the same folder.",
)
VOLUME_NAME = Reason(
    "E_VOLUME_NAME",
    "several volume files have the same name, and the name identifies the patient",
    "Name each file after its patient, and give only the first scan of each patient.",
)
NOT_A_NUMBER = Reason(
    "E_NOT_A_NUMBER",
    "some voxels contain no number",
    "Convert the original scan again, without a mask or registration.",
)
MASK_FILE = Reason(
    "E_MASK_FILE",
    "the lung mask cannot be read: it is damaged, or neither NIfTI-1 nor a binary, uncompressed DICOM segmentation",
    "Export the lung mask again as .nii.gz, with position and orientation, or as a binary segmentation.",
)
MASK_LABELS = Reason(
    "E_MASK_LABELS",
    "the lung mask does not say which of its parts are the lungs",
    "In NIfTI use 1 for the right and 2 for the left lung, or 1 for both. In a segmentation use the SNOMED CT codes.",
)
MASK_EMPTY = Reason("E_MASK_EMPTY", "the lung mask contains no lung", "Make the mask again, or correct it.")
MASK_SERIES = Reason(
    "E_MASK_SERIES",
    "the segmentation belongs to another series, or to another frame of reference, than the scan",
    "Give the mask that was made from exactly this series.",
)
