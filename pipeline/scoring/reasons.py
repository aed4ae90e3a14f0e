"""Reasons why a scan is not scored, and what is shown beside its answer."""

from models.refusal import Reason

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
