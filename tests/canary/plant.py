"""Synthetic patients to search for, with names and numbers that nothing else resembles by chance."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import dcmread

from pipeline.cohort.store import Cohort
from pipeline.imaging.ct_slice import decode_slice, inspect_slice
from pipeline.site.folder import Site
from tests.canary.scanner import Planted

_RECORDS = ("laboratory.csv", "outcomes.csv")
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiouy"
_ROWS = 24  # pixel rows per slice that are searched for; more would need memory without finding more


@dataclass(frozen=True)
class Patient:
    """One patient of a hospital, as in its files. `tensor`: file name in the site's cohort."""

    name: str
    identifier: str
    uids: tuple[str, ...]
    records: tuple[str, ...]
    scan: Path  # the slice whose rows are searched for
    tensor: str = ""

    @property
    def laboratory(self) -> str:
        return self.records[0]


def rename(hospital: Path, seed: int) -> list[Patient]:
    """Give each patient of a synthetic hospital a name and an identifier of thirteen digits, in all its files.

    The scans must be stored without compression, so that their pixels can be found in the files.
    """
    rng = random.Random(seed)
    patients = []
    texts = {name: (hospital / name).read_bytes().decode() for name in _RECORDS}
    for folder in sorted((hospital / "ct").iterdir()):
        name = f"{_word(rng, 5)}^{_word(rng, 3)}"
        identifier = str(rng.randrange(10**12, 10**13))
        files = sorted(folder.iterdir())
        for file in files:
            ds = dcmread(file)
            ds.PatientName, ds.PatientID = name, identifier
            ds.save_as(file)
        texts = {file: text.replace(folder.name, identifier) for file, text in texts.items()}
        rows = [row for text in texts.values() for row in text.splitlines() if identifier in row]
        middle = files[len(files) // 2]
        ds = dcmread(middle, stop_before_pixels=True)
        uids = (ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID, ds.SOPInstanceUID)
        patients.append(Patient(name, identifier, tuple(map(str, uids)), tuple(rows), middle))
    for name, text in texts.items():
        (hospital / name).write_bytes(text.encode())
    return patients


def _word(rng: random.Random, syllables: int) -> str:
    return "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(syllables)).capitalize()


def with_tensors(site: Site, patients: list[Patient]) -> list[Patient]:
    """Return the patients that the site's ingest accepted, each with its tensor."""
    with Cohort(site) as cohort:
        tensors = {row.pseudonym: row.tensor for row in cohort.patients()}
    named = ((patient, tensors.get(site.pseudonym(patient.identifier))) for patient in patients)
    return [Patient(**{**vars(patient), "tensor": tensor}) for patient, tensor in named if tensor]


def planted(site: Site, patient: Patient, key: str) -> list[Planted]:
    """Return everything to search for of one patient. The name of each finding begins with `key` and a colon."""
    family, given = patient.name.split("^")
    names = (patient.name, f"{given} {family}", f"{family} {given}", f"{family}, {given}", family)
    hu = decode_slice(inspect_slice(patient.scan))
    tensor = np.load(site.cohort_folder / "tensors" / patient.tensor)[0].astype(np.float32)
    return [
        Planted(f"{key}: name", names),
        Planted(f"{key}: identifier", (patient.identifier,)),
        Planted(f"{key}: pseudonym", (site.pseudonym(patient.identifier),)),
        *(Planted(f"{key}: UID {number}", (uid,)) for number, uid in enumerate(patient.uids)),
        *(Planted(f"{key}: row {number}", _cells(row, patient)) for number, row in enumerate(patient.records)),
        Planted(f"{key}: scan", lines=(_middle(hu),)),
        Planted(f"{key}: tensor", lines=(_middle(tensor[len(tensor) // 2]),)),
    ]


def _cells(row: str, patient: Patient) -> tuple[str, ...]:
    """Return a row of a table, and the part after the identifier if that part is distinctive enough."""
    after = row.partition(patient.identifier)[2].strip(",")
    return (row, after) if sum(map(str.isalnum, after)) >= 16 else (row,)


def _middle(image: np.ndarray) -> np.ndarray:
    """Return the middle rows of an image, one after the other."""
    first = max(0, len(image) // 2 - _ROWS // 2)
    return image[first : first + _ROWS].ravel()
