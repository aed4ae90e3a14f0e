"""Result files of a decision: a verified report that names its predecessor, or a note that rejects what was sent.

A decision that the outline of the lungs is not usable has both: its note rejects only the segmentations.

They are written into a folder of their own beside the model's results, when they are first needed, and never changed.
"""

import logging
import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from pydicom import Dataset, dcmread

from models.refusal import Refusal
from pipeline.clinic.reasons import RESULT_NO_DICOM, RESULT_WRITE
from pipeline.clinic.records import Answer, Decision
from pipeline.clinic.results.source import Source, read_source
from pipeline.clinic.results.write import PICTURE, REPORT, RESULTS, SEGMENTATION
from pipeline.clinic.review import are_lungs_usable
from pipeline.clinic.settings import Clinic
from pipeline.imaging.pydicom_silence import quiet_pydicom
from pipeline.system.atomic_files import move_durably, write_durably

NOTE = "rejected.dcm"
FILES = RESULTS
NO_ORGANIZATION = "not stated"

log = logging.getLogger("fedthorax.clinic")


def verified_files(clinic: Clinic, answer: Answer, decisions: Sequence[Decision]) -> list[Path]:
    """Return the files of the answer's newest decision, which accepts or corrects it; write them if necessary.

    `decisions`: all of the answer. Raises Refusal E_RESULT_NO_DICOM, E_RESULT_WRITE; OSError if the disk is full.
    """
    folder = folder_of(answer)
    if not folder.is_dir():
        earlier = [folder.with_name(each.id) for each in decisions if each.id != folder.name]
        made = _written(clinic, answer, _predecessor(answer, earlier))
        _keep(made, folder)
    return [folder / name for name in FILES if (folder / name).is_file()]


def withdrawal_files(answer: Answer, sent: Sequence[Path]) -> list[Path]:
    """Return the note that rejects the segmentations among the files `sent` earlier; write it if necessary.

    None if there are none, or if the newest decision finds the outline of the lungs usable. Call `verified_files`
    first: what it wrote may be older, because somebody looked at the results before they were sent. Raises as it does.
    """
    segmentations = [path for path in sent if path.name == SEGMENTATION]
    if are_lungs_usable(answer) or not segmentations:
        return []
    note = folder_of(answer) / NOTE
    if not note.is_file():
        content = BytesIO()
        _rejection(answer, segmentations).save_as(content, enforce_file_format=True)
        write_durably(note, content.getvalue())
    return [note]


def rejection_files(answer: Answer, sent: Sequence[Path]) -> list[Path]:
    """Return the note that rejects the files `sent` earlier; write it if necessary. Raises as `verified_files`."""
    folder = folder_of(answer)
    if not folder.is_dir():
        _keep({NOTE: _rejection(answer, sent)}, folder)
    return [folder / NOTE]


def folder_of(answer: Answer) -> Path:
    assert answer.decision is not None
    return answer.folder / answer.decision.id


@quiet_pydicom()
def _written(clinic: Clinic, answer: Answer, predecessor: Path | None) -> dict[str, Dataset]:
    from pipeline.clinic.results.picture import picture
    from pipeline.clinic.results.segmentation import segmentation
    from pipeline.clinic.results.structured_report import Verification, structured_report

    wanted = clinic.settings.results
    source = _source(answer)
    made: dict[str, Dataset] = {}
    try:
        verification = Verification(
            organization=wanted.organization or NO_ORGANIZATION,
            predecessor=_header(predecessor) if predecessor else None,
        )
        has_segments = wanted.seg and are_lungs_usable(answer)
        segmented = segmentation(answer, source, answer.folder) if has_segments else None
        if wanted.sr:
            made[REPORT] = structured_report(answer, source, verification, segmented)
        if wanted.picture:
            made[PICTURE] = picture(answer, source, answer.folder)
        if segmented:
            made[SEGMENTATION] = segmented
    except Exception as error:  # highdicom and pydicom refuse headers with many different errors
        raise Refusal(RESULT_WRITE, private=f"{type(error).__name__}: {error}") from error
    return made


@quiet_pydicom()
def _rejection(answer: Answer, sent: Sequence[Path]) -> Dataset:
    from pipeline.clinic.results.rejection_note import rejection_note

    source = _source(answer)
    try:
        return rejection_note(answer, source, [_header(path) for path in sent])
    except Exception as error:
        raise Refusal(RESULT_WRITE, private=f"{type(error).__name__}: {error}") from error


def _source(answer: Answer) -> Source:
    source = read_source(answer.folder)
    if source is None:
        raise Refusal(RESULT_NO_DICOM)
    return source


def _predecessor(answer: Answer, earlier: Sequence[Path]) -> Path | None:
    """Return the newest earlier report: of a decision, else the model's own."""
    candidates = [answer.folder / REPORT, *(folder / REPORT for folder in earlier)]
    return next((path for path in reversed(candidates) if path.is_file()), None)


@quiet_pydicom()
def _header(path: Path) -> Dataset:
    return dcmread(path, stop_before_pixels=True)


def _keep(made: dict[str, Dataset], folder: Path) -> None:
    """Write the files, and move them to their folder as a whole; another thread may have been faster."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        incoming = Path(scratch) / folder.name
        incoming.mkdir(mode=0o700)
        for name, dataset in made.items():
            dataset.save_as(incoming / name, enforce_file_format=True)
        try:
            move_durably(incoming, folder)
        except OSError:
            if not folder.is_dir():
                raise
            log.info("the files of a decision were written by another thread")
