"""Reasons why a scan is not scored, and flags that are shown beside its score."""

from models.refusal import Reason

MIXED_PATIENT = Reason(
    "E_MIXED_PATIENT",
    "the images belong to {patients} patients",
    "Give only the images of one patient. Find out first why they were mixed.",
)
MIXED_SERIES = Reason(
    "E_MIXED_SERIES",
    "there are {series} CT series, but exactly one is needed",
    "Give only one series, or select it by its SeriesInstanceUID (`fedthorax score --series-uid UID`).",
)
SERIES_TWICE = Reason(
    "W_SERIES_TWICE",
    "the same scan was given several times, under different UIDs",
    "No action is needed. One of the copies was scored.",
)
UNKNOWN_SERIES = Reason(
    "E_UNKNOWN_SERIES",
    "no series has the given SeriesInstanceUID",
    "Compare the UID with the PACS, or give only the series itself.",
)
NO_PROBABILITY = Reason(
    "E_NO_PROBABILITY",
    "the model's output is not a number",
    "Do not use this release, and inform its authors.",
)
LABELS_NOT_JUDGED = Reason(
    "E_LABELS_NOT_JUDGED",
    "the model was not calibrated and evaluated for any of its labels, so it gives no number",
    "Use a release whose card has figures of test patients for the label.",
)
UNFAMILIAR = Reason(
    "E_UNFAMILIAR",
    "the scan is too different from the training scans: its distance is {distance}, the limit is {limit}",
    "Check the scan for another disease, an unusual protocol or a wrong series. This model cannot score it.",
)
REPORT_WRITE = Reason(
    "E_REPORT_WRITE",
    "the page cannot be written",
    "Give a folder to which this user may write, on a disk with free space. A device or a pipe is never written to.",
)
OUT_IS_INPUT = Reason(
    "E_OUT_IS_INPUT",
    "the answer would replace a file of the scan or its lung mask, or lie in the scan's own folder",
    "Give --out another folder, outside the scan's. Nothing was changed.",
)
FILES_UNREADABLE = Reason(
    "W_FILES_UNREADABLE",
    "some files could not be read; slices at an end of the scan may be missing",
    "Check in the pictures that the lungs are complete, or export the series again.",
)
UNREADABLE_BESIDES = Reason(
    "W_UNREADABLE_BESIDES",
    "files that could not be read: {files} ({codes})",
    "What seems to be missing may be in the files that could not be read: they may be damaged.",
)
METAL = Reason(
    "W_METAL",
    "there is metal in the chest, and its streaks may cross the lungs",
    "Check the lungs beside the metal before you use the figures.",
)
ONE_LUNG = Reason(
    "W_ONE_LUNG",
    "one lung has less than a quarter of the volume of both",
    "Look for a collapsed, resected or completely consolidated lung. The training data contain few of these.",
)
LUNGS_UNSURE = Reason(
    "W_LUNGS_UNSURE",
    "two methods of finding the lungs disagree",
    "Compare the outline of the lungs with the pictures. If it is wrong, do not use the shares of dense lung.",
)
BORDER_UNSURE = Reason(
    "W_BORDER_UNSURE",
    "the border of the lungs is uncertain in dense tissue",
    "Compare the marked consolidation with the pictures: fluid or chest wall may count, or consolidation be left out.",
)
COARSE = Reason(
    "W_COARSE",
    "the pixels are larger than those that the model uses",
    "Use the original series, if the resolution of this one was reduced.",
)
NOT_ADULT = Reason(
    "W_NOT_ADULT", "the patient is under 18; the model is only for adults", "Do not rely on the figures."
)
AGE_MISSING = Reason(
    "W_AGE_MISSING",
    "the scan does not state the patient's age",
    "No action is needed. The model scores the scan without it.",
)
SEX_MISSING = Reason(
    "W_SEX_MISSING",
    "the scan does not state the patient's sex",
    "No action is needed. The model scores the scan without it.",
)
