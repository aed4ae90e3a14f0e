"""Finds DICOM files and groups them into series from their headers; it does not check the images."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from pydicom import Dataset
from pydicom.tag import Tag
from pydicom.uid import MediaStorageDirectoryStorage

from models.refusal import Refusal, without_error_number
from pipeline.imaging import phantom_marker, reasons
from pipeline.imaging.dates_and_ages import AGE, acquired_at, age_in_years, patient_age
from pipeline.imaging.dicom_header import identifier, read_header, tags, text, text_or_nothing
from pipeline.imaging.fast_header import Head, head_tags, read_head
from pipeline.imaging.functional_groups import SHARED, first_frame, is_multi_frame
from pipeline.imaging.pydicom_silence import quiet_pydicom
from pipeline.system.findings import Finding

_HEADER = tags(
    *(
        "SOPClassUID",
        "Modality",
        "Manufacturer",
        "ConvolutionKernel",
        "StudyInstanceUID",
        "SeriesInstanceUID",
    ),
    *("PatientID", "IssuerOfPatientID", *AGE, "PatientSex", "InstanceNumber", "NumberOfFrames", SHARED),
)
_HEADER += phantom_marker.TAGS
_IMAGES = tags("SOPClassUID", "SOPInstanceUID", "NumberOfFrames")
_NUMBER = int(Tag("InstanceNumber"))
_IN_HEAD = head_tags(
    *("PatientID", "IssuerOfPatientID", "StudyInstanceUID", "SeriesInstanceUID", "InstanceNumber", "NumberOfFrames")
)
_IN_HEAD |= frozenset(map(int, phantom_marker.TAGS))
VOLUME_SUFFIXES = (".mha", ".mhd", ".nii", ".nii.gz")  # a whole scan in one file, see `pipeline/imaging/nifti_reader`
# Other files that exports contain beside images. All remaining files are expected to be DICOM, whatever their name.
_COMPANIONS = (
    *(".csv", ".dll", ".doc", ".docx", ".exe", ".htm", ".html", ".inf", ".ini", ".jpeg", ".jpg", ".js"),
    *(".json", ".log", ".md", ".nrrd", ".pdf", ".png", ".raw", ".toml", ".tsv", ".txt", ".xls", ".xlsx"),
    *(".xml", ".yaml", ".yml", ".zraw"),
    *VOLUME_SUFFIXES,
)
_COMPANION_NAMES = frozenset(("DICOMDIR", "LICENSE", "LICENCE", "README", "VERSION", "THUMBS.DB"))


@dataclass(frozen=True)
class Series:
    """One scan, as described by the headers of its files. Stays at the site: it holds identifiers and paths.

    `files`: the files of a DICOM series, sorted by name, or one volume file.
    `patient_id`, `issuer`: PatientID and IssuerOfPatientID without padding ('' if absent), never guessed.
    `acquired`: time of the scan, without time zone if it is local time; None if the header has no usable date. Where
    the header states an offset from UTC, it has this offset until `site_data` converts it to the site's time zone.
    `has_clock`: false if the header gives only the day; `acquired` is then midnight, and has no offset.
    `fingerprint`: SHA-256 over relative path, size and modification time of all files.
    `numbers`: the InstanceNumbers of the files that have one, in no particular order.
    `slices`: number of images: of files, or of frames in multi-frame images; 0 if unknown (a volume file).
    `is_phantom`: whether all of its files are DICOM with the mark of a synthetic phantom.
    `lung_masks`: the files in the site's folder of lung masks that belong to it; more than one is a fault.
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
    slices: int = 0
    has_clock: bool = True
    is_phantom: bool = False
    lung_masks: tuple[Path, ...] = ()


@dataclass
class _Group:
    """The files of one series found so far: (name relative to its root, path)."""

    header: Dataset  # of the first file
    files: list[tuple[str, Path]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    slices: int = 0
    is_phantom: bool = True  # until a file without the mark is found
    series: Series | None = None  # made by `complete`; made again if more files are found later

    def complete(self) -> Series:
        """Return the series with all files found so far. Raises Refusal or OSError if a file cannot be read."""
        if self.series is None or len(self.series.files) != len(self.files):
            series = _series(self.header, sorted(self.files), tuple(self.numbers))
            self.series = replace(series, slices=self.slices, is_phantom=self.is_phantom)
        return self.series


class _Groups:
    """Groups files into series, one file at a time."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, ...], _Group] = {}
        # By head: the key, the number of images, and whether it has the phantom's mark.
        self._known: dict[bytes, tuple[tuple[str, ...], int, bool]] = {}
        self._unreported: list[_Group] = []

    def put(self, name: str, path: Path) -> None:
        """Add one file to its series. Raises Refusal: E_NOT_DICOM, E_PARSE."""
        head = read_head(path, _IN_HEAD)
        number = _number(head)
        known = self._known.get(head.same) if head else None
        if known is None:
            header = read_header(path, _HEADER)
            if text(header.file_meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
                return
            key = _key(header, path)
            known = key, _frames(header), phantom_marker.is_marked(header)
            if key not in self._groups:
                self._groups[key] = _Group(header)
                self._unreported.append(self._groups[key])
            if head and text(header, "SeriesInstanceUID"):
                self._known[head.same] = known
            number = _number(None, header) if head is None else number
        key, frames, is_marked = known
        group = self._groups[key]
        group.files.append((name, path))
        group.slices += frames
        group.is_phantom &= is_marked
        if number is not None:
            group.numbers.append(number)

    def tell(self, soon: Callable[[Series], None]) -> None:
        """Pass each series found since the last call to `soon`, with the files found so far."""
        unreported, self._unreported = self._unreported, []
        for group in unreported:
            try:
                series = group.complete()
            except (Refusal, OSError):
                continue  # `complete` reports the error
            soon(series)

    def complete(self, findings: list[Finding]) -> list[Series]:
        """Return all series, and add unreadable ones to `findings`."""
        series = []
        for key, group in self._groups.items():
            try:
                series.append(group.complete())
            except (Refusal, OSError) as error:
                detail = f"{group.files[0][1]}: {without_error_number(str(error))}"
                findings.append(Finding(reasons.PARSE, patient_id=key[0], detail=detail))
        return series


@quiet_pydicom()
def find_series(
    root: Path | Sequence[Path], soon: Callable[[Series], None] | None = None
) -> tuple[list[Series], list[Finding]]:
    """Find all series among files and folders (searched to any depth), and the files that could not be read.

    Files are grouped by patient, issuer, study and series, so that two patients never share a series. If a series has
    no UID, its folder identifies it. Findings: E_NOT_DICOM, E_PARSE.

    `soon` receives each series once, as soon as the search of the first folder with its files ends. If a series has
    files in several folders, which is rare, the final series has more files and another fingerprint.
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


@quiet_pydicom()
def different_images(series: Series) -> int:
    """Return the number of images with different SOPInstanceUIDs: of files that were exported twice, one counts.

    An image without a UID counts as different from all others. Raises Refusal: E_NOT_DICOM, E_PARSE.
    """
    images: dict[str, int] = {}
    for path in series.files:
        header = read_header(path, _IMAGES)
        images[text(header, "SOPInstanceUID") or str(path)] = _frames(header)
    return sum(images.values())


def walk(
    root: Path | Sequence[Path], is_wanted: Callable[[str], bool], findings: list[Finding]
) -> Iterator[tuple[str, Path]]:
    """Yield (name relative to its root, path) of each given file and of each wanted file in folders, in order.

    Links to folders are followed. No folder is searched twice, so a link to a parent folder cannot cause a loop.
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
                # is_file excludes pipes: opening one would wait forever.
                if is_wanted(name) and path.is_file():
                    yield name if inside == "." else f"{inside}/{name}", path


def is_companion(name: str) -> bool:
    """Whether exports contain files of this name beside images."""
    return name.startswith(".") or name.upper() in _COMPANION_NAMES or name.lower().endswith(_COMPANIONS)


def _key(header: Dataset, path: Path) -> tuple[str, ...]:
    study, series = text(header, "StudyInstanceUID"), text(header, "SeriesInstanceUID")
    patient, issuer = identifier(header, "PatientID"), identifier(header, "IssuerOfPatientID")
    return patient, issuer, study, series or str(path.parent)


def _frames(header: Dataset) -> int:
    """Return the number of images in a file."""
    try:
        return max(1, int(text(header, "NumberOfFrames"))) if is_multi_frame(header) else 1
    except (Refusal, ValueError):
        return 1


def _number(head: Head | None, header: Dataset | None = None) -> int | None:
    """Return InstanceNumber, None if absent or unreadable; it is removed from the head, because it differs per file."""
    try:
        if head is not None:
            return int(head.elements.pop(_NUMBER, b"")[8:].strip(b" \0"))
        return None if header is None else int(text(header, "InstanceNumber"))
    except (Refusal, ValueError):
        return None


def _series(header: Dataset, files: list[tuple[str, Path]], numbers: tuple[int, ...]) -> Series:
    """Make a series from the `header` of one file and the sorted `files`: (relative name, path).

    Age, sex, time and the words for scanner and kernel may be missing; identifiers and the modality must be readable.
    """
    header = first_frame(header)
    sex = text_or_nothing(header, "PatientSex")
    acquired, has_clock = acquired_at(header)
    return Series(
        files=tuple(path for _, path in files),
        patient_id=identifier(header, "PatientID"),
        issuer=identifier(header, "IssuerOfPatientID"),
        study_uid=text(header, "StudyInstanceUID"),
        series_uid=text(header, "SeriesInstanceUID"),
        modality=text(header, "Modality"),
        age_years=age_in_years(patient_age(header)),
        sex=sex if sex in {"M", "F"} else None,
        acquired=acquired,
        has_clock=has_clock,
        manufacturer=text_or_nothing(header, "Manufacturer"),
        kernel=text_or_nothing(header, "ConvolutionKernel"),
        fingerprint=fingerprint(files),
        numbers=numbers,
    )


def fingerprint(files: Sequence[tuple[str, Path]]) -> str:
    """Return the SHA-256 over relative name, size and modification time of files. Raises OSError."""
    digest = hashlib.sha256()
    for name, path in files:
        status = path.stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
