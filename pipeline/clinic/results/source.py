"""The source of a result: the identity in the scan's headers, and the list of its images.

A few attributes of the header are stored, none of them private, so that the results can be written after the scan's
files are deleted. All texts become Unicode; control characters are removed.
"""

import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, dcmread, dcmwrite
from pydicom.datadict import dictionary_VR
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from models.refusal import Refusal
from pipeline.clinic.reasons import RESULT_IDENTITY, RESULT_NO_DICOM
from pipeline.imaging.dicom_header import is_decoded, read_header, tags, text
from pipeline.imaging.discovery import Series
from pipeline.imaging.nifti_reader import is_volume_file
from pipeline.imaging.pydicom_silence import quiet_pydicom

SOURCE, IMAGES = "source.dcm", "source.json"
UNICODE = "ISO_IR 192"
# From the modules Patient, Patient Study, General Study and General Series (DICOM PS3.3, C.7.1 to C.7.4).
_KEPT = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge"),
    *("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
    *("StudyDescription", "SeriesInstanceUID", "Manufacturer", "PatientIdentityRemoved", "DeidentificationMethod"),
    "FrameOfReferenceUID",  # C.7.4.1
)
_MAY_BE_ABSENT = ("PatientIdentityRemoved", "DeidentificationMethod", "FrameOfReferenceUID")
_EXACT = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID", "SeriesInstanceUID")
_UIDS = tags("SOPClassUID", "SOPInstanceUID")
_HEADER = [*tags(*_KEPT, "SpecificCharacterSet"), *_UIDS]
# Invalid values are left out: these attributes may be empty, and few PACS accept invalid values.
_FORMS = {
    "DA": re.compile(r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", re.ASCII),
    "TM": re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?", re.ASCII),
    "AS": re.compile(r"\d{3}[DWMY]", re.ASCII),
    "CS": re.compile(r"[A-Z0-9 _]{1,16}", re.ASCII),
    "UI": re.compile(r"[0-9.]{1,64}", re.ASCII),
}
_NAMES_AND_NUMBERS = {"PN", "SH"}  # left out if not decoded: they could be those of another
_SEXES = {"M", "F", "O"}
_LONGEST = {"SH": 16, "LO": 64}
_REORDERING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # Unicode Standard Annex 9


@dataclass(frozen=True)
class Source:
    """The scan that a result belongs to.

    `header`: identity of patient, study and series. `images`: SOP class and instance UID of each slice.
    """

    header: Dataset
    images: tuple[tuple[str, str], ...]


@quiet_pydicom()
def keep_source(series: Series, folder: Path) -> Refusal | None:
    """Write source.dcm and source.json into `folder`; return None, or why there can be no results.

    E_RESULT_NO_DICOM: the scan has another format. E_RESULT_IDENTITY: its headers do not identify the patient or the
    study in a form that can be written again. Raises OSError if the disk is full.
    """
    if is_volume_file(series.files[0].name):
        return Refusal(RESULT_NO_DICOM)
    try:
        images = [_image(path) for path in series.files]
        header = _identity(read_header(series.files[0], _HEADER))
        header.SOPClassUID, header.SOPInstanceUID = images[0]
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dcmwrite(folder / SOURCE, header, enforce_file_format=True)
    except (Refusal, ValueError) as error:  # pydicom raises ValueError for values that it refuses to write
        (folder / SOURCE).unlink(missing_ok=True)
        return Refusal(RESULT_IDENTITY, private=str(error))
    (folder / IMAGES).write_text(json.dumps(list(dict.fromkeys(images))))
    return None


@quiet_pydicom()
def read_source(folder: Path) -> Source | None:
    """Read what `keep_source` wrote; None if there is nothing."""
    if not (folder / SOURCE).is_file():
        return None
    images = json.loads((folder / IMAGES).read_bytes())
    return Source(dcmread(folder / SOURCE), tuple((sop_class, instance) for sop_class, instance in images))


def _identity(header: Dataset) -> Dataset:
    """Return the cleaned attributes.

    Raises ValueError if cleaning changes an identifier, or if it was not decoded: it could be another's.
    """
    kept = Dataset()
    kept.SpecificCharacterSet = UNICODE
    for keyword in _KEPT:
        written = text(header, keyword).strip()
        value = _clean(keyword, written)
        if keyword in _EXACT and (value != written or not is_decoded(written)):
            raise ValueError(keyword)
        if value or keyword not in _MAY_BE_ABSENT:
            setattr(kept, keyword, value)
    if "DeidentificationMethod" not in kept and "PatientIdentityRemoved" in kept:
        del kept.PatientIdentityRemoved  # invalid without a method (PS3.3, C.7.1.1)
    if not kept.StudyInstanceUID or not kept.SeriesInstanceUID:
        raise ValueError("no UID")
    return kept


def _clean(keyword: str, value: str) -> str:
    """Return the value without control characters, cut to its maximum length; '' if it is invalid."""
    value = "".join(sign for sign in value if _is_shown(sign)).strip()
    vr = dictionary_VR(keyword)
    if vr in _NAMES_AND_NUMBERS and not is_decoded(value):
        return ""
    if (vr in _FORMS and not _FORMS[vr].fullmatch(value)) or (keyword == "PatientSex" and value not in _SEXES):
        return ""
    return value[: _LONGEST.get(vr)]


def _is_shown(sign: str) -> bool:
    return unicodedata.category(sign) != "Cc" and unicodedata.bidirectional(sign) not in _REORDERING


def _image(path: Path) -> tuple[str, str]:
    """Return SOP class and instance UID. Raises ValueError if there is no instance UID."""
    header = read_header(path, _UIDS)
    if not (instance := text(header, "SOPInstanceUID")):
        raise ValueError("no UID")
    return text(header, "SOPClassUID") or CTImageStorage, instance
