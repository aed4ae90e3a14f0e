"""The table of reasons for which a scan, a laboratory row or a patient is refused (E_) or flagged (W_)."""

from models.refusal import Reason

# --- files and series -------------------------------------------------------------------------------------

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
SLICES_MISSING = Reason(
    "E_SLICES_MISSING",
    "of {step} slices only one is here: they lie {apart_mm} mm apart, and their numbers go up in steps of {step}",
    "The series did not come whole: send all of its images again.",
)
SLICES_FEWER = Reason(
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

# --- volume files -----------------------------------------------------------------------------------------

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

# What is no upright, whole chest in Hounsfield units gets no score; the same, where it is slight, is flagged.

NOT_AIR = Reason(
    "E_AIR_HU",
    "the air around the patient has {air_hu} HU instead of -1000: the values are not Hounsfield units",
    "Export the original series; the rescale of this one is wrong, or it was converted.",
)
NOT_TISSUE = Reason(
    "E_TISSUE_HU",
    "{soft} % of the body has the density of soft tissue and {muscle} % that of muscle: the values are not Hounsfield "
    "units",
    "Export the original CT series; the rescale of this one is wrong, it was converted, or it is no CT.",
)
NOISE = Reason(
    "E_NOISE",
    "the scan is too noisy: {noise_hu} HU in soft tissue after averaging",
    "Take another reconstruction of the scan, if there is one.",
)
NOT_LUNG = Reason(
    "E_NOT_LUNG",
    "what lies in the place of the lungs has {lung_hu} HU, which no lung has",
    "Choose the chest CT series of the examination; gas in the bowel was taken for lung, or the values are wrong.",
)
MUCH_METAL = Reason(
    "E_METAL",
    "{metal_ml} mL of metal lie in the chest, and its streaks go through the lungs",
    "Read the scan without a score; a reconstruction that takes metal out changes the lungs beside it.",
)
LUNGS_CUT_OFF = Reason(
    "E_LUNGS_CUT",
    "the lungs are cut off: their section at an end of the scan is {percent} % of the widest",
    "Choose the series that covers both lungs from apex to base.",
)
BODY_TURNED = Reason(
    "E_TURNED",
    "the body lies otherwise than the header says: the spine in front, or the windpipe below",
    "Export the original series; a conversion has turned this one over.",
)
MIRRORED_BODY = Reason(
    "E_MIRRORED",
    "heart and stomach lie on the right: left and right were exchanged, or the patient is unlike those of the training",
    "Compare the scan with the PACS. If they do lie on the right, read the scan without a score.",
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
    "the patient identifier is missing, or is another authority's",
    "Export the identifier that the scans carry in PatientID.",
)
IDENTIFIER_AMBIGUOUS = Reason(
    "E_IDENTIFIER_AMBIGUOUS",
    "a laboratory result names several patient identifiers, and none is marked as the site's",
    "Name the authority of the scans' identifiers as `issuer` in [site] or [laboratory] of site.toml.",
)
IDENTIFIERS = Reason(
    "E_IDENTIFIERS",
    "{percent} % of the {table} file's rows name no patient, or none that can be told from others",
    "Export the identifier that the scans carry; for HL7 and FHIR set `issuer`; export FHIR's Patients as well.",
)
LABORATORY_ISSUERS = Reason(
    "E_LABORATORY_ISSUERS",
    "{issuers} authorities issued the patient identifiers of the laboratory, and one number may mean two people",
    "Name the one whose numbers the scans carry as `issuer` in [site] or [laboratory] of site.toml.",
)
DATE = Reason(
    "E_DATE",
    "a date is missing or not written in the declared format",
    "Correct it at its source, or `date_format` in site.toml; HL7 and FHIR must give the day of collection.",
)
DATES = Reason(
    "E_DATES",
    "{percent} % of the {table} file's rows lack a date in the declared format",
    "Correct `date_format` in site.toml (day and month may be swapped); export the time of collection.",
)
TIME_ZONE = Reason(
    "E_TIME_ZONE",
    "the laboratory gives times with a time zone, and it is not said in which zone the site lies",
    'Set `time_zone` in [site] of site.toml, for instance to "Europe/Paris".',
)
HL7 = Reason(
    "E_HL7",
    "a message is not well-formed HL7 v2",
    "Export it again; segments end with a carriage return, and no line breaks stand inside them.",
)
HL7_FILES = Reason(
    "E_HL7_FILES",
    "{percent} % of the {table} file's messages are not well-formed HL7 v2",
    "Check `file`, `format` and `encoding` in [laboratory] of site.toml; export ORU^R01 messages.",
)
HL7_CHARSET = Reason(
    "W_HL7_CHARSET",
    "messages name another character set (MSH-18) than site.toml; they were read as site.toml says",
    "Check `encoding` in [laboratory]; a word that was read wrongly is in no word list.",
)
OTHER_MESSAGE = Reason(
    "W_OTHER_MESSAGE",
    "messages that are no production ORU^R01 were left aside",
    "Nothing to do, unless results are missing.",
)
FHIR = Reason(
    "E_FHIR",
    "a resource is not valid FHIR R4 JSON",
    "Export it again as R4 JSON; files of lines must end in .ndjson.",
)
FHIR_FILES = Reason(
    "E_FHIR_FILES",
    "{percent} % of the {table} file's resources are not valid FHIR R4 JSON",
    "Check `file` and `format` in [laboratory] of site.toml; export R4 as JSON (32 MB each) or NDJSON.",
)
NO_PCR_TEST = Reason(
    "E_NO_PCR_TEST",
    "none of the laboratory's {results} results is that of a SARS-CoV-2 PCR",
    "Add the laboratory's own codes of the overall PCR result to `tests` in [laboratory] of site.toml.",
)
OTHER_TEST = Reason(
    "W_OTHER_TEST",
    "results of another test were left aside",
    "Nothing to do, unless it is the SARS-CoV-2 PCR: then add its code to `tests` in [laboratory] of site.toml.",
)
PCR_GENES_ONLY = Reason(
    "W_PCR_GENES_ONLY",
    "a specimen has results for single genes and no overall result",
    "Export the laboratory's overall result; what single genes mean is for the laboratory to say.",
)
PCR_PRELIMINARY = Reason(
    "W_PCR_PRELIMINARY",
    "a result is not final; it was left out",
    "Export it again once the laboratory has released it; check that the export tells the status.",
)
PCR_WITHDRAWN = Reason(
    "W_PCR_WITHDRAWN",
    "the laboratory has withdrawn a result, or could not obtain it",
    "Nothing to do.",
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
    "a patient is said to have died before being intubated or taken into intensive care",
    "Correct the dates at their source; the patient has no outcome.",
)
OUTCOME_CONFLICT = Reason(
    "E_OUTCOME_CONFLICT",
    "two rows give one patient different outcomes",
    "Export one row for each patient; the patient has no outcome.",
)
LABEL = Reason(
    "E_LABEL",
    "a label is neither 0 nor 1 nor empty",
    "Correct the row at its source; the patient has no labels.",
)
LABELS = Reason(
    "E_LABELS",
    "{percent} % of the {table} file's rows hold a label that is neither 0 nor 1 nor empty",
    "Check the names of the columns in [labels] of site.toml; write yes as 1, no as 0.",
)
LABEL_CONFLICT = Reason(
    "E_LABEL_CONFLICT",
    "two rows give one patient different labels",
    "Keep one row for each patient; the patient has no labels.",
)


# --- PACS -------------------------------------------------------------------------------------------------

PACS_SILENT = Reason(
    "E_PACS_SILENT",
    "the PACS does not answer, or broke off in the middle",
    "Check the address in [pacs] of site.toml, or in clinic.toml, the PACS and the network between. A command that is "
    "run again goes on; a clinic tries again by itself.",
)
PACS_AUTH = Reason(
    "E_PACS_AUTH",
    "the PACS does not let this node in",
    "Check user, password, token or AE title in [pacs] of site.toml, or in clinic.toml, with the PACS's administrator.",
)
PACS_UNTRUSTED = Reason(
    "E_PACS_UNTRUSTED",
    "no trusted TLS connection to the PACS can be made",
    "Check `ca_certificate` in [pacs] of site.toml, or in clinic.toml, that the PACS speaks TLS, that its certificate "
    "names this address and has not expired, and that ours is given where it asks for one.",
)
PACS_PROXY = Reason(
    "E_PACS_PROXY",
    "the proxy does not let this node through to the PACS",
    "Correct `proxy` in [pacs.dicomweb] of site.toml; leave it empty where the PACS is reached directly.",
)
PACS_ANSWER = Reason(
    "E_PACS_ANSWER",
    "the PACS gave an answer that was not foreseen",
    "Check that the address in [pacs] of site.toml, or in clinic.toml, is that of DICOMweb or DIMSE; the site's screen "
    "tells the answer.",
)
PACS_FILE = Reason(
    "E_PACS_FILE",
    "a file that [pacs] of site.toml, or clinic.toml, names cannot be used",
    "It must be there, not be empty, and where it holds a secret be readable by the node's user alone (chmod 600).",
)
PACS_INCOMPLETE = Reason(
    "E_PACS_INCOMPLETE",
    "the PACS lists images of a series that it does not send",
    "Let the PACS's administrator check the series; it is fetched when the PACS sends all of it.",
)
PULL_RUNNING = Reason(
    "E_PULL_RUNNING",
    "another pull of this site is running",
    "Wait until it has ended; what it fetches is there for everybody.",
)
DISK = Reason(
    "E_DISK",
    "the site's folder cannot be written, or its disk has less than {gigabytes} GB left",
    "Free space on the disk, or lower `keep_free_gb` in [pacs.limits] of site.toml; then run the command again.",
)
PATIENT_DIFFERS = Reason(
    "E_PATIENT_DIFFERS",
    "the images name another patient than the PACS does",
    "The patient was merged or corrected: let the PACS write its changes into the images that it sends.",
)


PACS_SERVICE = Reason(
    "E_PACS_SERVICE",
    "the PACS does not offer this node what it needs: {service}",
    "Let the PACS's administrator allow it; C-GET and C-MOVE can stand in for each other (`retrieve` in site.toml).",
)
PACS_STORE = Reason(
    "E_PACS_STORE",
    "the PACS does not take the results, and will not when they are sent again: status {status}",
    "Show the PACS's administrator the status; when the PACS takes such files, send the answer again.",
)
PACS_NO_DELIVERY = Reason(
    "E_PACS_NO_DELIVERY",
    "the PACS was asked to send images to this node (C-MOVE), and none arrived",
    "Have the PACS's administrator register this node (AE title, host and port are on the site's screen) and send it "
    "a C-ECHO during a pull; open the firewalls between.",
)
PACS_RECEIVER = Reason(
    "E_PACS_RECEIVER",
    "the address on which this node receives images from the PACS cannot be opened",
    "Correct `receiver_host` and `receiver_port` in [pacs.dimse] of site.toml; another program may use the port.",
)

# --- patients and cohort ----------------------------------------------------------------------------------

NO_PATIENT_ID = Reason(
    "E_NO_PATIENT_ID",
    "the series has no PatientID",
    "Export it with its PatientID; without one nobody knows whose laboratory results belong to it.",
)
ISSUER = Reason(
    "E_ISSUER",
    "another authority than the site's issued the patient identifier",
    "Correct [site] issuer in site.toml, or export the site's own patients: the same number may mean two people.",
)
ISSUERS = Reason(
    "E_ISSUERS",
    "{issuers} authorities issued the patient identifiers of the scans, and the same number may mean two people",
    "Name the one whose numbers the laboratory uses as [site] issuer in site.toml.",
)
PCR_INCOMPLETE = Reason(
    "E_PCR_INCOMPLETE",
    "a negative patient has a laboratory row that was left out, which may have been positive",
    "Mend that row at its source or in the word lists; it has a finding of its own.",
)
NO_LABEL = Reason("E_NO_LABEL", "the labels file says nothing about the scan", "Check that both name it alike.")
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
SHARED_STUDY = Reason(
    "E_SHARED_STUDY",
    "one examination is filed under two patient identifiers",
    "Find out in the PACS whose it is; both were left out.",
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

NO_OUTCOME = Reason(
    "W_NO_OUTCOME",
    "it is not known what became of the patient",
    "Complete the outcome file: one row for each patient with a CT, with the last day on which the patient was seen.",
)
EVENT_BEFORE_CT = Reason(
    "W_EVENT_BEFORE_CT",
    "the patient was intubated, in intensive care or dead before the day of the CT",
    "Nothing to do if the dates are right: such a scan foretells nothing.",
)
FOLLOWED_TOO_SHORT = Reason(
    "W_FOLLOWED_TOO_SHORT",
    "the patient was followed without event for less than the horizon",
    "Export later follow-up, if there is any; `horizon_days` is in [join] of site.toml.",
)

# --- the data contract: what a whole cohort shows ---------------------------------------------------------

AIR_HU = Reason(
    "W_AIR_HU",
    "the air around the patient is not near -1000 HU",
    "Have the scanner's calibration looked at, or export the original series: the values may have been converted.",
)
TURNED = Reason(
    "W_TURNED",
    "the body lies otherwise than the header says: the spine in front, or the windpipe below",
    "Export the original series; a conversion may have turned it over.",
)
MIRRORED = Reason(
    "W_MIRRORED",
    "in most scans the heart lies on the right",
    "Look at one scan beside the PACS: a conversion may have exchanged left and right.",
)
PRONE = Reason(
    "W_PRONE",
    "the patient lay on the belly or on a side",
    "Nothing to do; dependent densities lie elsewhere than usual.",
)
FEET_FIRST = Reason("W_FEET_FIRST", "the patient went into the scanner feet first", "Nothing to do.")
SMALL_LUNGS = Reason(
    "W_SMALL_LUNGS",
    "the lungs have less than 2 litres",
    "Check that the series was taken in inspiration and covers both lungs.",
)
KERNEL_MIX = Reason(
    "W_KERNEL_MIX",
    "sharp and soft reconstructions are mixed",
    "Choose one kind of reconstruction for all patients, if the PACS has it; sharp ones are noisier.",
)
KERNEL_UNKNOWN = Reason(
    "W_KERNEL_UNKNOWN",
    "the reconstruction kernel is not given or not known here",
    "Nothing to do; it is not known then whether sharp and soft reconstructions are mixed.",
)
SCANNER_MIX = Reason(
    "W_SCANNER_MIX",
    "the scans do not all come from the most common manufacturer",
    "Nothing to do; check that positive and negative patients were scanned alike.",
)
NEAR_DUPLICATE = Reason(
    "W_NEAR_DUPLICATE",
    "two patients' lungs show the same vessels: it may be one scan, reconstructed anew or copied",
    "Look up the patients by their pseudonyms with `fedthorax node find`, and correct the PACS.",
)
REPEATED = Reason(
    "W_REPEATED",
    "the patient was scanned on several days",
    "Nothing to do: the first examination that can be used was taken.",
)
LABEL_YIELD = Reason(
    "W_LABEL_YIELD",
    "most patients with a usable CT have no label",
    "Look at the reasons in the waterfall: export more of the laboratory, or widen the windows in [join].",
)
IDENTIFIERS_DIFFER = Reason(
    "W_IDENTIFIERS_DIFFER",
    "most patients with a usable CT are not in the laboratory's files",
    "Compare how both write an identifier: leading zeros, prefixes, a number of the case instead of the patient.",
)
PREVALENCE = Reason(
    "W_PREVALENCE",
    "nearly all patients have the same label, of PCR or of severity",
    "Export patients with the other result or course too; from one class alone nothing can be learnt.",
)
FEW_IN_SPLIT = Reason(
    "W_FEW_IN_SPLIT",
    "a split has too few patients of a class to be learnt from or tested on",
    "Ingest more patients; with fewer than 5 of each class no figure is stable.",
)
OTHER_SPLIT = Reason(
    "E_OTHER_SPLIT",
    "a patient is in two splits, or in another than the site's key says",
    "Restore keys/pseudonym.key from a backup and ingest again; do not train until then.",
)
OUTCOME_YIELD = Reason(
    "W_OUTCOME_YIELD",
    "of most PCR-positive patients it is not known whether the course was severe",
    "Complete the outcome file, follow-up included.",
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
COHORT_BUSY = Reason(
    "E_COHORT_BUSY",
    "another command works on this site's cohort",
    "Wait until it has finished, and run the command again.",
)
COHORT_FILE = Reason(
    "E_COHORT_FILE",
    "the cohort's file cannot be read or written",
    "Free space on the disk; if the file is damaged, delete cohort/cohort.sqlite and ingest again: nothing is lost.",
)
NO_SITE = Reason("E_NO_SITE", "the folder is not a site: it has no site.toml", "Make one with `fedthorax node init`.")
CT_FOLDER = Reason("E_CT_FOLDER", "the folder of CT series does not exist", "Correct [ct] folder in site.toml.")
NO_PACS = Reason(
    "E_NO_PACS",
    "site.toml names no PACS",
    "Fill in the section [pacs] of site.toml, or go on with `fedthorax node ingest`: it reads the folder of [ct].",
)
NOTHING_PULLED = Reason(
    "E_NOTHING_PULLED",
    "nothing has been fetched from the PACS yet",
    "Run `fedthorax node pull`, or `fedthorax node ingest`, which pulls first.",
)
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

# --- public data sets -------------------------------------------------------------------------------------

LAYOUT = Reason(
    "E_LAYOUT",
    "the folder is not laid out as {data_set} is published: {missing} is missing",
    "Give the folder into which the data set was unpacked, with its names as they were.",
)
IMPORT_OUT = Reason(
    "E_IMPORT_OUT",
    "the folder for the sites is not empty, or lies inside the data set",
    "Name a new folder elsewhere; a half-made one may be deleted, nothing of the data set is in it.",
)
IMPORT_DUPLICATE = Reason(
    "E_IMPORT_DUPLICATE",
    "{patients} patients have more than one row in the labels",
    "Take the table as it was published.",
)
IMPORT_LABEL = Reason(
    "E_IMPORT_LABEL",
    "{rows} rows of the labels hold a value that the data set does not know",
    "Take the table as it was published.",
)
IMPORT_SITES = Reason(
    "E_IMPORT_SITES",
    "{patients} patients cannot be split into {sites} sites",
    "Ask for fewer sites, or give the whole data set.",
)
NO_SCAN = Reason(
    "E_NO_SCAN",
    "there is no CT of a patient",
    "Nothing to do if part of the data set is here, or if the patient had no CT.",
)
NO_CLINICAL = Reason(
    "E_NO_CLINICAL",
    "there is no clinical file of a patient with a CT",
    "Nothing to do if none was published; the patient was left out.",
)
CLINICAL_FILE = Reason(
    "E_CLINICAL_FILE",
    "a clinical file is not a JSON object",
    "Fetch it again; the patient was left out.",
)
CENTRE = Reason(
    "E_CENTRE",
    "the clinical files name no submitting centre, or several",
    "Nothing to do: a patient belongs to one site; this one was left out.",
)
AMBIGUOUS_DATE = Reason(
    "E_AMBIGUOUS_DATE",
    "a date may be day and month or month and day",
    "Nothing to do: which one is never guessed, and the date was left out.",
)
UNREADABLE_DATE = Reason(
    "E_UNREADABLE_DATE",
    "a date is missing or in no known form",
    "Nothing to do: the date was left out.",
)
SWAB_RESULT = Reason(
    "E_SWAB_RESULT",
    "the result of a swab is neither positive nor negative",
    "Nothing to do: the swab was left out.",
)
SWABS = Reason(
    "E_SWABS",
    "no readable positive swab, and the patient cannot be called negative for sure",
    "Nothing to do; a date or result of the patient's swabs was left out, or none was recorded.",
)
EVENT_DATE = Reason(
    "E_EVENT_DATE",
    "whether or when a patient was intubated or died is not known",
    "Nothing to do; the patient has no outcome.",
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
UNFAMILIAR = Reason(
    "E_UNFAMILIAR",
    "the scan is unlike those that the model was trained on: its distance is {distance}, the limit {limit}",
    "Look at the scan: another disease, an unusual protocol or a wrong series may be why. This model has no answer.",
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
METAL = Reason(
    "W_METAL",
    "there is metal in the chest, and its streaks may go through the lungs",
    "Look at the lungs beside it before you read the figures.",
)
ONE_LUNG = Reason(
    "W_ONE_LUNG",
    "one lung has less than a quarter of the volume of both",
    "Look for a collapsed, resected or wholly consolidated lung: the model has hardly seen such.",
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

# --- privacy ----------------------------------------------------------------------------------------------

PRIVACY_BUDGET = Reason(
    "E_PRIVACY_BUDGET",
    "the round would bring all private studies together to ε = {asked} here; {spent} are spent of a budget of {budget}",
    "A spent budget never comes back. Ask for fewer rounds or more noise, or let whoever answers for the data decide "
    "on another max_epsilon in [privacy] of site.toml.",
)
PRIVACY_SETTINGS = Reason(
    "E_PRIVACY_SETTINGS",
    "what a step with this noise and sampling rate costs cannot be worked out here",
    "Look at noise_multiplier and sample_rate in [privacy] of the study, and whether opacus is installed at the site.",
)
PRIVACY_FILE = Reason(
    "E_PRIVACY_FILE",
    "the site's privacy budget cannot be read or written, and what it does not hold is not trained",
    "Free space on the disk and check permissions of SITE_DIR/privacy. If budget.sqlite is damaged, bring it back from "
    "the newest backup: an older one has forgotten what was spent since.",
)

BY_CODE = {reason.code: reason for reason in list(globals().values()) if isinstance(reason, Reason)}
