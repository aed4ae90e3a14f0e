"""Common attributes of all result files of one answer: series, equipment, and stable UIDs."""

from datetime import datetime
from importlib.metadata import version
from typing import Any
from uuid import UUID, uuid5

from pydicom import Dataset
from pydicom.uid import UID
from pydicom.valuerep import DA, DT, TM

from pipeline.clinic.records import Answer
from pipeline.clinic.results.source import UNICODE

MAKER = "fedthorax"
_LONGEST = 64  # characters of LO
_NAMESPACE = UUID("6f1d2c1e-6a0f-4d7e-9b57-0a3c5b8f4e21")


def uid(*parts: str) -> UID:
    """Return a UID (DICOM PS3.5, B.2) that is a function of its parts: a file sent twice is one instance."""
    return UID(f"2.25.{uuid5(_NAMESPACE, ' '.join(parts)).int}")


def series(answer: Answer, kind: str, number: int, description: str) -> dict[str, Any]:
    """Return highdicom's arguments for a series with one file of this kind ("report", "picture").

    A decision's files are new series: nothing that was sent before is overwritten.
    """
    made = made_at(answer)
    what = (answer.id, answer.decision.id, kind) if answer.decision else (answer.id, kind)
    return {
        "series_instance_uid": uid(*what, "series"),
        "sop_instance_uid": uid(*what, "instance"),
        "series_number": number,
        "instance_number": 1,
        "series_description": description,
        "manufacturer": MAKER,
        "manufacturer_model_name": MAKER,
        "software_versions": version(MAKER),
        "series_date": DA(made.date()),
        "series_time": TM(made.time()),
        "content_date": DA(made.date()),
        "content_time": TM(made.time()),
        "specific_character_set": UNICODE,
    }


def name_algorithm(made: Dataset, answer: Answer) -> None:
    """Add the model to the equipment that contributed (IHE RAD AI Results, 6.5.3.1): another model has another UID."""
    purpose, model = Dataset(), Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = "109102", "DCM", "Processing Equipment"
    model.PurposeOfReferenceCodeSequence = [purpose]
    model.Manufacturer = MAKER
    model.ManufacturerModelName = answer.model_name[:_LONGEST]
    model.SoftwareVersions = version(MAKER)
    model.DeviceUID = uid("model", answer.model_sha256)
    model.ContributionDateTime = DT(made_at(answer))
    model.ContributionDescription = "Model that gave the probabilities"
    made.ContributingEquipmentSequence = [*made.get("ContributingEquipmentSequence", []), model]


def sign(made: Dataset, answer: Answer) -> None:
    """Set all creation times to that of the answer or its decision: written again, the file is the same."""
    at = made_at(answer)
    made.InstanceCreationDate, made.InstanceCreationTime = DA(at.date()), TM(at.time())
    for equipment in made.get("ContributingEquipmentSequence", []):
        if "ContributionDateTime" in equipment:
            equipment.ContributionDateTime = DT(at)


def made_at(answer: Answer) -> datetime:
    """Return the time of the answer, or of its decision, in local time, as scanners write it, in whole seconds."""
    at = answer.decision.at if answer.decision else answer.created_at
    return at.astimezone().replace(microsecond=0, tzinfo=None)
