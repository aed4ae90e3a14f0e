"""The table of reasons for which a scan, a laboratory row or a patient is refused (E_) or flagged (W_)."""

from models.refusal import Reason

# --- files and series -------------------------------------------------------------------------------------

NO_IMAGES = Reason("E_NO_IMAGES", "no DICOM image was found", "Give the folder, zip or files of one chest CT series.")
ARCHIVE_BROKEN = Reason(
    "E_ARCHIVE_BROKEN",
    "the zip cannot be opened: it is damaged, encrypted or packed in an unusual way",
    "Pack the series again as an ordinary zip without a password, or give the folder itself.",
)
ARCHIVE_RATIO = Reason(
    "E_ARCHIVE_RATIO",
    "the zip would unpack to more than {ratio} times its size or more than {gigabytes} GB",
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
DUPLICATE_DROPPED = Reason(
    "W_DUPLICATE_SLICE",
    "identical copies of slices were left out",
    "Nothing to do; the export holds files twice.",
)
SLICE_GAP = Reason(
    "E_SLICE_GAP",
    "{gaps} distances between slices differ from the usual {usual_mm} mm (up to {largest_mm} mm)",
    "Slices are missing or unevenly spaced: send the whole series again.",
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

# --- anatomy ----------------------------------------------------------------------------------------------

NO_LUNGS = Reason(
    "E_NO_LUNGS",
    "no lungs were found: this is not a chest CT",
    "Choose the chest CT series of the examination.",
)
NOT_A_WHOLE_CHEST = Reason(
    "E_NOT_A_WHOLE_CHEST",
    "not a whole chest: {lungs_ml} mL of lung over {length_mm} mm",
    "Choose the series that covers both lungs from apex to base.",
)

# --- laboratory and outcomes ------------------------------------------------------------------------------

TABLE_FILE = Reason(
    "E_TABLE_FILE",
    "the {table} file could not be opened",
    "Check `file` in this table of site.toml, and that the node's user may read it.",
)
ENCODING = Reason(
    "E_ENCODING",
    "the {table} file holds bytes that its declared encoding does not know",
    "Declare the encoding in which the file was exported (utf-8-sig, latin-1, cp1252), or export it again.",
)
SCHEMA = Reason(
    "E_SCHEMA",
    "the {table} file is not laid out as declared: {fault}",
    "Compare the file's first row with the column names and the separator in site.toml; export it again.",
)
ROW = Reason(
    "E_ROW",
    "a row does not have as many cells as the first row",
    "Quote cells that hold the separator; the row was left out.",
)
ROWS = Reason(
    "E_ROWS",
    "{percent} % of the {table} file's rows do not have as many cells as its first row",
    "Check the declared separator, and quote cells that hold it.",
)
NO_IDENTIFIER = Reason(
    "E_NO_IDENTIFIER",
    "the patient identifier is empty",
    "Export the identifier that the scans carry in PatientID.",
)
DATE = Reason(
    "E_DATE",
    "a date is not written in the declared format",
    "Correct the date at its source, or `date_format` in site.toml.",
)
DATES = Reason(
    "E_DATES",
    "{percent} % of the {table} file's rows hold a date that is not written in the declared format",
    "Correct `date_format` in site.toml (day and month may be swapped); leave cells without a date empty.",
)
PCR_DATE = Reason(
    "E_PCR_DATE",
    "a specimen was collected in the future",
    "Correct the collection time at its source, or the clock of this machine; the row was left out.",
)
PCR_UNMAPPED_ROW = Reason(
    "W_PCR_UNMAPPED",
    "a result is in none of the laboratory's word lists",
    "Let the laboratory say what it means and add it to site.toml; the row was left out.",
)
PCR_UNMAPPED = Reason(
    "E_PCR_UNMAPPED",
    "{percent} % of the {table} file's rows hold a result that is in none of the laboratory's word lists",
    "Complete the word lists with the laboratory; check the encoding; export final results only.",
)
OUTCOME_DATE = Reason(
    "E_OUTCOME_DATE",
    "an outcome or the end of follow-up lies in the future",
    "Export days that have been observed, with no placeholder dates; the patient has no outcome.",
)
OUTCOME_ORDER = Reason(
    "E_OUTCOME_ORDER",
    "a patient is said to have died before being intubated",
    "Correct the dates at their source; the patient has no outcome.",
)
OUTCOME_CONFLICT = Reason(
    "E_OUTCOME_CONFLICT",
    "two rows give one patient different outcomes",
    "Export one row for each patient; the patient has no outcome.",
)


# --- patients and cohort ----------------------------------------------------------------------------------

NO_PCR = Reason(
    "E_NO_PCR",
    "the patient has no PCR result",
    "Check that laboratory and scanner use the same patient identifier, leading zeros included.",
)
PCR_WINDOW = Reason(
    "E_PCR_WINDOW",
    "no PCR result close enough to the CT decides whether it shows Covid-19",
    "Nothing to do if the patient was not tested around the CT; the windows are in [join] of site.toml.",
)
PCR_CONFLICT = Reason(
    "E_PCR_CONFLICT",
    "one specimen is both positive and negative",
    "Export one overall result for each specimen, not one for each gene; ask the laboratory which holds.",
)
PCR_INDETERMINATE = Reason(
    "E_PCR_INDETERMINATE",
    "the PCR results around the CT are indeterminate",
    "Nothing to do, unless the laboratory has repeated the test.",
)
DUPLICATE_SCAN = Reason(
    "E_DUPLICATE_SCAN",
    "the same scan is filed under two patient identifiers",
    "Find out in the PACS whose scan it is; both were left out.",
)
SEVERAL_SERIES = Reason(
    "W_SEVERAL_SERIES",
    "the examination holds several usable series",
    "Nothing to do: the one with most slices was taken.",
)
CT_DATE = Reason(
    "E_CT_DATE", "the series does not say when it was acquired", "Export the series with its acquisition date."
)
OUTCOME_WITHOUT_CT = Reason(
    "W_OUTCOME_WITHOUT_CT",
    "there is an outcome for a patient without a CT",
    "Check that the PACS export is complete and uses the same identifiers; nothing was left out.",
)

# --- site -------------------------------------------------------------------------------------------------

SITE_EXISTS = Reason("E_SITE_EXISTS", "the folder is a site already", "Edit its site.toml, or choose another folder.")
SITE_KEY = Reason(
    "E_SITE_KEY",
    "the site's key for pseudonyms is missing or damaged",
    "Restore keys/pseudonym.key from a backup; with a new key every patient would get a new pseudonym and split.",
)
EXAMINE_FAILED = Reason(
    "E_EXAMINE_FAILED",
    "examining the series failed in a way that was not foreseen",
    "Report it with the site's log, which tells the error; the other series are not affected.",
)
WORKER_DIED = Reason(
    "E_WORKER_DIED",
    "a process that examined series was ended by the system, most likely for want of memory",
    "Free memory and run the command again; what was examined is kept.",
)
NO_SITE = Reason("E_NO_SITE", "the folder is not a site: it has no site.toml", "Make one with `fedthorax node init`.")
CT_FOLDER = Reason("E_CT_FOLDER", "the folder of CT series does not exist", "Correct [ct] folder in site.toml.")
TOO_FEW_PATIENTS = Reason(
    "E_TOO_FEW_PATIENTS",
    "the site has too few accepted patients to take part: {patients}, and at least {needed} are needed",
    "Ingest more patients; `fedthorax node check` says why others were refused.",
)
PREPROCESSING = Reason(
    "E_PREPROCESSING",
    "the cohort was prepared with other settings than the study's",
    "Run `fedthorax node ingest` with --study and the study's file.",
)

# --- scoring ----------------------------------------------------------------------------------------------

MIXED_PATIENT = Reason(
    "E_MIXED_PATIENT",
    "the images belong to {patients} patients",
    "Give the images of one patient alone; find out first how they came together.",
)
MIXED_SERIES = Reason(
    "E_MIXED_SERIES",
    "there are {series} CT series, and one is needed",
    "Give one series alone, or name it by its SeriesInstanceUID.",
)
UNKNOWN_SERIES = Reason(
    "E_UNKNOWN_SERIES",
    "no series has the given SeriesInstanceUID",
    "Compare the UID with the one in the PACS, or give the series alone.",
)
NO_PROBABILITY = Reason(
    "E_NO_PROBABILITY",
    "the model's answer is not a number",
    "Do not use this release; tell those who made it.",
)
REPORT_WRITE = Reason(
    "E_REPORT_WRITE",
    "the page cannot be written",
    "Give a folder that this user may write to, on a disk with space.",
)
FILES_UNREADABLE = Reason(
    "W_FILES_UNREADABLE",
    "some files could not be read; slices at an end of the scan may be missing",
    "Check that the lungs are whole in the pictures, or export the series again.",
)
LUNGS_CUT = Reason(
    "W_LUNGS_CUT",
    "the lungs reach the first or the last slice: part of them may lie outside the scan",
    "Check that the series covers both lungs; take a longer one, if there is one.",
)
HU_SHIFT = Reason(
    "W_HU_SHIFT",
    "the lungs are darker or denser than usual, by more than the preparation evens out",
    "Look for emphysema, a very deep or shallow breath, an unusual kernel or a wrong calibration.",
)
COARSE = Reason(
    "W_COARSE",
    "the pixels are larger than the model works with",
    "Take the original series, if this one was reduced.",
)
NOT_ADULT = Reason(
    "W_NOT_ADULT", "the patient is under 18; the model is meant for adults", "Do not rely on the figures."
)
AGE_MISSING = Reason(
    "W_AGE_MISSING", "the scan does not give the patient's age", "Nothing to do; the model answers without it."
)
SEX_MISSING = Reason(
    "W_SEX_MISSING", "the scan does not give the patient's sex", "Nothing to do; the model answers without it."
)

BY_CODE = {reason.code: reason for reason in list(globals().values()) if isinstance(reason, Reason)}
