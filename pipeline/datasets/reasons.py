"""Reasons why a published data set cannot be imported."""

from models.refusal import Reason

LAYOUT = Reason(
    "E_LAYOUT",
    "the folder does not have the layout in which {data_set} is published: {missing} is missing",
    "Give the folder into which the data set was unpacked, with its original names.",
)
IMPORT_OUT = Reason(
    "E_IMPORT_OUT",
    "the folder for the sites is not empty, or is inside the data set",
    "Give a new folder elsewhere. A partly filled folder may be deleted: it contains no files of the data set itself.",
)
IMPORT_TABLE = Reason(
    "E_IMPORT_TABLE",
    "the table of labels is not as it was published: {fault}",
    "Use the table as it was published. A spreadsheet program that saved it may have changed separator and encoding.",
)
IMPORT_DUPLICATE = Reason(
    "E_IMPORT_DUPLICATE",
    "patients have more than one row in the labels ({patients} of them)",
    "Use the table as it was published.",
)
IMPORT_LABEL = Reason(
    "E_IMPORT_LABEL",
    "rows of the labels contain a value that the data set does not define ({rows} of them)",
    "Use the table as it was published.",
)
IMPORT_SITES = Reason(
    "E_IMPORT_SITES",
    "the data set has too few patients ({patients}) for the wanted number of sites ({sites})",
    "Ask for fewer sites, or give the complete data set.",
)
NO_SCAN = Reason(
    "E_NO_SCAN",
    "a patient has no CT",
    "No action is needed if only part of the data set is here, or if the patient had no CT.",
)
NO_CLINICAL = Reason(
    "E_NO_CLINICAL",
    "a patient with a CT has no clinical file",
    "No action is needed if none was published. The patient was left out.",
)
CLINICAL_FILE = Reason(
    "E_CLINICAL_FILE",
    "a clinical file is not a JSON object",
    "Download it again. The patient was left out.",
)
CENTRE = Reason(
    "E_CENTRE",
    "the clinical files name no submitting centre, or several",
    "No action is needed. A patient belongs to one site; this patient was left out.",
)
AMBIGUOUS_DATE = Reason(
    "E_AMBIGUOUS_DATE",
    "a date can be read as day/month or as month/day",
    "No action is needed. The order is never guessed; the date was left out.",
)
UNREADABLE_DATE = Reason(
    "E_UNREADABLE_DATE",
    "a date is missing or has an unknown format",
    "No action is needed. The date was left out.",
)
SWAB_RESULT = Reason(
    "E_SWAB_RESULT",
    "the result of a swab is neither positive nor negative",
    "No action is needed. The swab was left out.",
)
SWABS = Reason(
    "E_SWABS",
    "there is no readable positive swab, and the patient is not certainly negative",
    "No action is needed. A date or result of the patient's swabs was left out, or none was recorded.",
)
EVENT_DATE = Reason(
    "E_EVENT_DATE",
    "it is unknown whether or when a patient was intubated or died",
    "No action is needed. The patient has no outcome.",
)
