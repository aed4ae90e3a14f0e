"""Finds DICOM files and groups them into series, from their headers alone; nothing here judges an image.

Also how every header is read, and the silence that pydicom needs around patient data.
"""

import hashlib
import os
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import MediaStorageDirectoryStorage

from models.refusal import Refusal
from pipeline.imaging import reasons
from pipeline.imaging.fast_header import Head, head_tags, read_head
from pipeline.imaging.pydicom_silence import quiet_pydicom
from pipeline.system.findings import Finding


def tags(*keywords: str) -> list[BaseTag]:
    """Tags for `read_header`; pydicom would look keywords up anew for each file, half as slow again."""
    return [Tag(keyword) for keyword in keywords]


PIXEL_DATA = Tag("PixelData")
_HEADER = tags(
    *(
        "SOPClassUID",
        "Modality",
        "Manufacturer",
        "ConvolutionKernel",
        "StudyInstanceUID",
        "SeriesInstanceUID",
    ),
    *("PatientID", "IssuerOfPatientID", "PatientAge", "PatientSex", "InstanceNumber"),
    *("AcquisitionDate", "AcquisitionTime", "SeriesDate", "SeriesTime", "StudyDate", "StudyTime"),
)
_NUMBER = int(Tag("InstanceNumber"))
_IN_HEAD = head_tags("PatientID", "IssuerOfPatientID", "StudyInstanceUID", "SeriesInstanceUID", "InstanceNumber")
VOLUME_SUFFIXES = (".mha", ".mhd", ".nii", ".nii.gz")  # a whole scan in a file: see `pipeline/imaging/nifti_reader.py`
# What lies beside images in an export. All other files are expected to be DICOM, whatever their name.
_COMPANIONS = (
    *(".csv", ".dll", ".doc", ".docx", ".exe", ".htm", ".html", ".inf", ".ini", ".jpeg", ".jpg", ".js"),
    *(".json", ".log", ".md", ".nrrd", ".pdf", ".png", ".raw", ".toml", ".tsv", ".txt", ".xls", ".xlsx"),
    *(".xml", ".yaml", ".yml", ".zraw"),
    *VOLUME_SUFFIXES,
)
_COMPANION_NAMES = frozenset(("DICOMDIR", "LICENSE", "LICENCE", "README", "VERSION", "THUMBS.DB"))
_MAX_READS = 100_000  # of one file; an ordinary header takes a few hundred, a plan of radiotherapy some ten thousand
_MAX_INFLATED_BYTES = 2**26
_FIRST_CT_YEAR = 1972  # earlier dates are placeholders of de-identification tools
_OLDEST_YEARS = 120
_YEARS_PER_UNIT = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


@dataclass(frozen=True)
class Series:
    """One scan, from the headers of its files. Site-only: it holds identifiers and paths.

    `files`: those of a DICOM series, sorted by name, or one volume file.
    `patient_id`, `issuer`: PatientID and IssuerOfPatientID as written ('' where absent), never guessed.
    `acquired`: site-local time without zone; None if unusable.
    `fingerprint`: SHA-256 over relative path, size and time of change of all files.
    `numbers`: the InstanceNumbers of the files that have one, in no order.
    """

    files: tuple[Path, ...]
    patient_id: str
    issuer: str
    study_uid: str
    series_uid: str
    modality: str
    age_years: float | None
    sex: str | None
    acquired: datetime | None
    manufacturer: str
    kernel: str
    fingerprint: str
    numbers: tuple[int, ...] = ()


class BoundedFile:
    """A file for pydicom to read, which ends with an error where an honest one would have ended long before.

    pydicom reads the head of each element and item by itself, and unpacks a deflated file in one piece: a few
    megabytes can keep it busy for minutes, or become gigabytes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._file, self._reads_left = file, _MAX_READS
        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)

    def read(self, size: int = -1) -> bytes:
        """Raises ValueError beyond a limit."""
        self._reads_left -= 1
        if self._reads_left < 0:
            raise ValueError("the header has too many elements")
        if size >= 0:
            return self._file.read(min(size, self._size))  # room is made for as much as is asked for
        deflated = self._file.read(_MAX_INFLATED_BYTES)  # nothing else is read to its end
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflater.decompress(deflated, _MAX_INFLATED_BYTES)
        if inflater.unconsumed_tail:
            raise ValueError("the file is inflated to too many bytes")
        return deflated


def read_header(path: Path, wanted: Collection[BaseTag]) -> Dataset:
    """Read the `wanted` tags of one file; the pixels only if they are among them.

    Raises `Refusal`: E_NOT_DICOM, E_PARSE.
    """
    try:
        with path.open("rb") as file:
            header = dcmread(BoundedFile(file), specific_tags=list(wanted), stop_before_pixels=PIXEL_DATA not in wanted)
    except InvalidDicomError:
        raise Refusal(reasons.NOT_DICOM, private=str(path)) from None
    except Exception as error:  # broken files make pydicom raise nearly anything
        raise Refusal(reasons.PARSE, private=f"{path}: {error}") from None
    # pydicom takes garbage after the magic word for an empty dataset; a DICOMDIR has nothing that we want.
    if not header and "MediaStorageSOPClassUID" not in header.file_meta:
        raise Refusal(reasons.NOT_DICOM, private=str(path))
    return header


def text(header: Dataset, keyword: str) -> str:
    """The value of a text attribute, '' where absent or empty; several values stay joined by backslashes.

    Raises `Refusal`: E_PARSE.
    """
    try:
        value = header.get(keyword)
        parts = value if isinstance(value, MultiValue) else [value]
        return "\\".join("" if part is None else str(part) for part in parts)
    except Exception as error:  # pydicom converts values only now
        raise Refusal(reasons.PARSE, private=f"{keyword}: {error}") from None


@dataclass
class _Group:
    """The files of one series as they are found: (name relative to its root, path)."""

    header: Dataset  # of the first
    files: list[tuple[str, Path]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    series: Series | None = None  # of as many files as it has

    def complete(self) -> Series:
        """Raises Refusal or OSError where header or files cannot be read."""
        if self.series is None or len(self.series.files) != len(self.files):
            self.series = _series(self.header, sorted(self.files), tuple(self.numbers))
        return self.series


class _Groups:
    """Files put to their series, one by one."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, ...], _Group] = {}
        self._known: dict[bytes, tuple[str, ...]] = {}
        self._untold: list[_Group] = []

    def put(self, name: str, path: Path) -> None:
        """Raises Refusal: E_NOT_DICOM, E_PARSE."""
        head = read_head(path, _IN_HEAD)
        number = _number(head)
        key = self._known.get(head.same) if head else None
        if key is None:
            header = read_header(path, _HEADER)
            if text(header.file_meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
                return
            key = _key(header, path)
            if key not in self._groups:
                self._groups[key] = _Group(header)
                self._untold.append(self._groups[key])
            if head and text(header, "SeriesInstanceUID"):
                self._known[head.same] = key
            number = _number(None, header) if head is None else number
        group = self._groups[key]
        group.files.append((name, path))
        if number is not None:
            group.numbers.append(number)

    def tell(self, soon: Callable[[Series], None]) -> None:
        """Hand over, as they are, those that began after the last time."""
        untold, self._untold = self._untold, []
        for group in untold:
            try:
                series = group.complete()
            except (Refusal, OSError):
                continue  # which is said in the end
            soon(series)

    def complete(self, findings: list[Finding]) -> list[Series]:
        """All series; what cannot be read is added to `findings`."""
        series = []
        for key, group in self._groups.items():
            try:
                series.append(group.complete())
            except (Refusal, OSError) as error:
                findings.append(Finding(reasons.PARSE, patient_id=key[0], detail=f"{group.files[0][1]}: {error}"))
        return series


@quiet_pydicom()
def find_series(
    root: Path | Sequence[Path], soon: Callable[[Series], None] | None = None
) -> tuple[list[Series], list[Finding]]:
    """Find all series among files and folders (searched to any depth), and the files that could not be read.

    Files are grouped by patient, issuer, study and series, so that two patients never share a series; where
    the series has no UID, its folder stands for it. Findings: E_NOT_DICOM, E_PARSE.

    `soon` is given each series once, as soon as the first folder with files of it was looked through. Few series lie in
    several folders: such a one is another in the end, with more files and another fingerprint.
    """
    findings: list[Finding] = []
    groups, folder = _Groups(), ""
    for name, path in walk(root, lambda name: not is_companion(name), findings):
        if soon and name.rpartition("/")[0] != folder:
            folder = name.rpartition("/")[0]
            groups.tell(soon)
        try:
            groups.put(name, path)
        except Refusal as refusal:
            findings.append(Finding(refusal.reason, detail=refusal.private or str(path)))
    return groups.complete(findings), findings


def walk(
    root: Path | Sequence[Path], is_wanted: Callable[[str], bool], findings: list[Finding]
) -> Iterator[tuple[str, Path]]:
    """Yield (name relative to its root, path) of each given file and each wanted one in folders, in order.

    Links to folders are followed; no folder is entered twice, so that a link to a folder above ends.
    """

    def unreadable(error: OSError) -> None:
        findings.append(Finding(reasons.PARSE, detail=str(error)))

    for top in [root] if isinstance(root, Path) else root:
        if top.is_file():
            yield top.name, top
            continue
        entered: set[Path] = set()
        for folder, subfolders, names in os.walk(top, onerror=unreadable, followlinks=True):
            place = Path(folder).resolve()
            if place in entered:
                subfolders.clear()
                continue
            entered.add(place)
            subfolders.sort()
            inside = Path(folder).relative_to(top).as_posix()
            for name in sorted(names):
                path = Path(folder, name)
                # is_file: opening a pipe would wait for ever.
                if is_wanted(name) and path.is_file():
                    yield name if inside == "." else f"{inside}/{name}", path


def is_companion(name: str) -> bool:
    """Whether a file of this name lies beside images in exports, and is none itself."""
    return name.startswith(".") or name.upper() in _COMPANION_NAMES or name.lower().endswith(_COMPANIONS)


def _key(header: Dataset, path: Path) -> tuple[str, ...]:
    study, series = text(header, "StudyInstanceUID"), text(header, "SeriesInstanceUID")
    return text(header, "PatientID"), text(header, "IssuerOfPatientID"), study, series or str(path.parent)


def _number(head: Head | None, header: Dataset | None = None) -> int | None:
    """InstanceNumber, taken out of the head, for each file has its own; None where there is none that can be read."""
    try:
        if head is not None:
            return int(head.elements.pop(_NUMBER, b"")[8:].strip(b" \0"))
        return None if header is None else int(text(header, "InstanceNumber"))
    except (Refusal, ValueError):
        return None


def _series(header: Dataset, files: list[tuple[str, Path]], numbers: tuple[int, ...]) -> Series:
    """`header` is that of one file; `files` holds (relative name, path), sorted."""
    sex = text(header, "PatientSex")
    return Series(
        files=tuple(path for _, path in files),
        patient_id=text(header, "PatientID"),
        issuer=text(header, "IssuerOfPatientID"),
        study_uid=text(header, "StudyInstanceUID"),
        series_uid=text(header, "SeriesInstanceUID"),
        modality=text(header, "Modality"),
        age_years=age_in_years(text(header, "PatientAge")),
        sex=sex if sex in {"M", "F"} else None,
        acquired=_acquired(header),
        manufacturer=text(header, "Manufacturer"),
        kernel=text(header, "ConvolutionKernel"),
        fingerprint=fingerprint(files),
        numbers=numbers,
    )


def fingerprint(files: Sequence[tuple[str, Path]]) -> str:
    """SHA-256 over relative name, size and time of change of files. Raises OSError."""
    digest = hashlib.sha256()
    for name, path in files:
        status = path.stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def age_in_years(age: str) -> float | None:
    """Age String, e.g. 063Y or 010M (DICOM PS3.5, 6.2); zero is what scanners write for 'not entered'."""
    match = re.fullmatch(r"(\d{1,3})([DWMY])", age.strip(), flags=re.ASCII)
    years = int(match[1]) * _YEARS_PER_UNIT[match[2]] if match else 0.0
    return years if 0 < years <= _OLDEST_YEARS else None


def _acquired(header: Dataset) -> datetime | None:
    """The first usable date of acquisition, series, study with its own time, or midnight."""
    for event in ("Acquisition", "Series", "Study"):
        day = re.fullmatch(r"\d{8}", text(header, f"{event}Date").strip(), flags=re.ASCII)
        clock = re.match(r"\d{6}|\d{4}|\d{2}", text(header, f"{event}Time").strip(), flags=re.ASCII)
        if day:
            try:
                moment = datetime.strptime(day[0] + (clock[0] if clock else "").ljust(6, "0"), "%Y%m%d%H%M%S")
            except ValueError:
                continue
            # A day of grace: the scanner may stand in another time zone than this machine.
            if moment.year >= _FIRST_CT_YEAR and moment <= datetime.now() + timedelta(days=1):
                return moment
    return None
