"""Write the results of an answer into its folder, ready to be sent."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from models.refusal import Reason, Refusal
from pipeline.clinic.reasons import NOT_FOR_PATIENTS, RESULT_IDENTITY, RESULT_NO_DICOM, RESULT_WRITE
from pipeline.clinic.records import Answer
from pipeline.imaging.pydicom_silence import quiet_pydicom
from pipeline.scoring.verdict import withheld

if TYPE_CHECKING:
    from highdicom.seg import Segmentation

    from pipeline.clinic.results.source import Source

logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)  # its log lines name the scan

REPORT, PICTURE, SEGMENTATION = "sr.dcm", "picture.dcm", "seg.dcm"
RESULTS = (REPORT, PICTURE, SEGMENTATION)
WHY_NOT = "no_results.txt"  # the code of the reason
_WHY_NOT = {reason.code: reason for reason in (NOT_FOR_PATIENTS, RESULT_IDENTITY, RESULT_NO_DICOM, RESULT_WRITE)}


@quiet_pydicom()
def write_results(
    answer: Answer, folder: Path, *, report: bool = True, picture: bool = True, seg: bool = False
) -> Refusal | None:
    """Write sr.dcm, picture.dcm and seg.dcm from the files that `keep_source` and `write_pictures` wrote to `folder`.

    There is no seg.dcm for a scan without a frame of reference.

    Returns None, or why there are no results: E_NOT_FOR_PATIENTS, E_RESULT_NO_DICOM or E_RESULT_WRITE. Never raises, so
    that an answer is not lost because of its results. Writing again gives the same bytes.
    """
    from pydicom import Dataset

    from pipeline.clinic.results.source import read_source

    if withheld(answer.score):
        return Refusal(NOT_FOR_PATIENTS)
    source = read_source(folder)
    if source is None:
        return Refusal(RESULT_NO_DICOM)
    made: dict[str, Dataset] = {}
    try:
        segmented = _segmentation(answer, source, folder) if seg else None
        if report:
            from pipeline.clinic.results.structured_report import structured_report

            made[REPORT] = structured_report(answer, source, segmentation=segmented)
        if picture:
            from pipeline.clinic.results.picture import picture as draw_picture

            made[PICTURE] = draw_picture(answer, source, folder)
        if segmented:
            made[SEGMENTATION] = segmented
        for name, dataset in made.items():
            dataset.save_as(folder / name, enforce_file_format=True)
    except Exception as error:  # highdicom and pydicom refuse headers with many different errors
        for name in RESULTS:
            (folder / name).unlink(missing_ok=True)
        return Refusal(RESULT_WRITE, private=f"{type(error).__name__}: {error}")
    return None


def _segmentation(answer: Answer, source: "Source", folder: Path) -> "Segmentation | None":
    from pipeline.clinic.results.segmentation import segmentation

    return segmentation(answer, source, folder)


def keep_why_not(refusal: Refusal, folder: Path) -> None:
    """Write into an answer's folder why it has no results. Raises OSError if the disk is full."""
    (folder / WHY_NOT).write_text(refusal.code, encoding="ascii")


def why_no_results(folder: Path) -> Reason | None:
    """Return why the answer in `folder` has no results; None if it has some, or if nothing was written."""
    if not (folder / WHY_NOT).is_file():
        return None
    return _WHY_NOT.get((folder / WHY_NOT).read_text(encoding="ascii"))
