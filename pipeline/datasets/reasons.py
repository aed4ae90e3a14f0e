"""Reasons why a published data set cannot be imported."""

from models.refusal import Reason

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
