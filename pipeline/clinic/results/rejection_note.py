"""The note that a person rejected results which the PACS already has (IHE RAD, Imaging Object Change Management).

A Key Object Selection with the title 'Rejected for Quality Reasons' (DICOM PS3.16, CID 7010): a PACS that supports it
hides the results, and every other one shows the note beside them. Nothing is deleted.
"""

from collections.abc import Sequence

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from pydicom import Dataset
from pydicom.sr.coding import Code

from pipeline.clinic.records import Answer
from pipeline.clinic.results import identity
from pipeline.clinic.results.source import Source
from pipeline.clinic.results.structured_report import device_observer, person_observer
from pipeline.clinic.review import decision_text

SERIES_NUMBER = 919
DESCRIPTION = "fedthorax rejection note, research use only"
TITLE = Code("113001", "DCM", "Rejected for Quality Reasons")


def rejection_note(answer: Answer, source: Source, rejected: Sequence[Dataset]) -> Dataset:
    """Create the note. `rejected`: headers of the results that the PACS has or may have, at least one."""
    assert answer.decision is not None
    content = KeyObjectSelection(
        document_title=TITLE,
        referenced_objects=rejected,
        observer_person_context=person_observer(answer.decision),
        observer_device_context=device_observer(),
        description=decision_text(answer),
    )
    made: Dataset = KeyObjectSelectionDocument(
        evidence=rejected,
        content=content,
        **identity.series(answer, "rejection", SERIES_NUMBER, DESCRIPTION),
    )
    made.copy_patient_and_study_information(source.header)
    identity.sign(made, answer)
    return made
