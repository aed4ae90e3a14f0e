"""Finds DICOM files and groups them into series from their headers; it does not check the images.

Also reads headers, with limits on damaged and hostile files.
"""

import hashlib
import os
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import BinaryIO

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import MediaStorageDirectoryStorage

from models.refusal import Refusal
from pipeline.imaging import phantom_marker, reasons
from pipeline.imaging.fast_header import Head, head_tags, read_head
from pipeline.imaging.functional_groups import SHARED, first_frame, is_multi_frame
from pipeline.imaging.pydicom_silence import quiet_pydicom
from pipeline.system.findings import Finding


def tags(*keywords: str) -> list[BaseTag]:
    """Return tags for `read_header`; given keywords, pydicom looks them up per file and takes 1.5 times as long."""
    return [Tag(keyword) for keyword in keywords]


PIXEL_DATA = Tag("PixelData")
DATES = (
    *("AcquisitionDate", "AcquisitionTime", "SeriesDate", "SeriesTime", "StudyDate", "StudyTime"),
    *("AcquisitionDateTime", "TimezoneOffsetFromUTC"),
)
AGE = ("PatientAge", "PatientBirthDate", *DATES)  # what `patient_age` needs
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
# Reads of one file; an ordinary header takes a few hundred, a radiotherapy plan about ten thousand. The description of
# a frame takes about a hundred, beside pixels of several kB.
_MAX_READS, _BYTES_A_READ = 100_000, 256
_MAX_INFLATED_BYTES = 2**26
_FIRST_CT_YEAR = 1972  # earlier dates are placeholders of de-identification tools
_OLDEST_YEARS = 120
_FIRST_BIRTH_YEAR = 1901  # earlier dates are placeholders too: 19000101, 18991230
_YEARS_PER_UNIT = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_WHOLE_TIME = re.compile(r"(.{0,8})(.*?)([+-]\d{4})?", re.ASCII | re.DOTALL)  # a DT: day, time, offset (PS3.5, 6.2)
_OFFSET = re.compile(r"([+-])(\d\d)([0-5]\d)", re.ASCII)
_OFFSETS = range(-12 * 60, 14 * 60 + 1)  # in minutes, as PS3.3 allows them


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


class BoundedFile:
    """A file object for pydicom that limits the number of reads and the size of inflated data.

    pydicom reads the head of each element and item separately, and inflates a deflated file in one piece. Without
    limits a hostile file of a few megabytes can occupy it for minutes or expand to gigabytes.
    """

    def __init__(self, file: BinaryIO, most_reads: int = _MAX_READS) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._size = file.seek(0, os.SEEK_END)
        self._file, self._reads_left = file, most_reads + self._size // _BYTES_A_READ
        file.seek(0)

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes. Raises ValueError beyond a limit."""
        self._reads_left -= 1
        if self._reads_left < 0:
            raise ValueError("the header has too many elements")
        if size >= 0:
            return self._file.read(min(size, self._size))  # a read allocates as much memory as is requested
        deflated = self._file.read(_MAX_INFLATED_BYTES)  # only a deflated file is read without a size
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflater.decompress(deflated, _MAX_INFLATED_BYTES)
        if inflater.unconsumed_tail:
            raise ValueError("the file is inflated to too many bytes")
        return deflated


def read_header(path: Path, wanted: Collection[BaseTag], most_reads: int = _MAX_READS) -> Dataset:
    """Read the `wanted` tags of one file; the pixels are read only if `wanted` contains them.

    `most_reads`: limit for a hostile file. A file with many frames needs more than the header of an image.
    Raises `Refusal`: E_NOT_DICOM, E_PARSE.
    """
    try:
        with path.open("rb") as file:
            header = dcmread(
                BoundedFile(file, most_reads),
                specific_tags=list(wanted),
                stop_before_pixels=PIXEL_DATA not in wanted,
            )
    except InvalidDicomError:
        raise Refusal(reasons.NOT_DICOM, private=str(path)) from None
    except Exception as error:  # on damaged files pydicom raises many kinds of exceptions
        raise Refusal(reasons.PARSE, private=f"{path}: {error}") from None
    # If garbage follows the magic word, pydicom returns an empty dataset. A DICOMDIR has none of the wanted tags.
    if not header and "MediaStorageSOPClassUID" not in header.file_meta:
        raise Refusal(reasons.NOT_DICOM, private=str(path))
    return header


def text(header: Dataset, keyword: str) -> str:
    """Return the value of a text attribute, '' if absent or empty; several values are joined by backslashes.

    Raises `Refusal`: E_PARSE.
    """
    try:
        value = header.get(keyword)
        parts = value if isinstance(value, MultiValue) else [value]
        return "\\".join("" if part is None else str(part) for part in parts)
    except Exception as error:  # pydicom converts values only on access
        raise Refusal(reasons.PARSE, private=f"{keyword}: {error}") from None


def identifier(header: Dataset, keyword: str) -> str:
    """Return an identifier without its padding, '' if absent: spaces on both sides mean nothing (DICOM PS3.5, 6.2).

    Raises `Refusal`: E_PARSE.
    """
    return text(header, keyword).strip(" \0")


def is_decoded(*texts: str) -> bool:
    """Whether all texts of a header were read without loss.

    Where bytes do not fit the header's character set, pydicom puts U+FFFD: identifiers of two patients can look alike.
    """
    return not any("\N{REPLACEMENT CHARACTER}" in each for each in texts)


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
                findings.append(Finding(reasons.PARSE, patient_id=key[0], detail=f"{group.files[0][1]}: {error}"))
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
    """Make a series from the `header` of one file and the sorted `files`: (relative name, path)."""
    header = first_frame(header)
    sex = text(header, "PatientSex")
    acquired, has_clock = _acquired(header)
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
        manufacturer=text(header, "Manufacturer"),
        kernel=text(header, "ConvolutionKernel"),
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


def age_in_years(age: str) -> float | None:
    """Convert an Age String, e.g. 063Y or 010M (DICOM PS3.5, 6.2); scanners write zero for 'not entered'."""
    match = re.fullmatch(r"(\d{1,3})([DWMY])", age.strip(), flags=re.ASCII)
    years = int(match[1]) * _YEARS_PER_UNIT[match[2]] if match else 0.0
    return years if 0 < years <= _OLDEST_YEARS else None


def patient_age(header: Dataset) -> str:
    """Return the age at the scan as an Age String, '' if unknown.

    If PatientAge is absent or cannot be used, the age is calculated from PatientBirthDate and the day of the scan.

    Raises `Refusal`: E_PARSE.
    """
    stated = text(header, "PatientAge").strip()
    if age_in_years(stated) is not None:
        return stated
    try:
        born = text(header, "PatientBirthDate").strip()
    except Refusal:  # no reason to leave out the scan
        return ""
    acquired, _ = _acquired(header)
    return _age_on(acquired.date(), born) if acquired else ""


def _age_on(day: date, born: str) -> str:
    """Return the age on a day as an Age String: whole years, in the first year months, in the first month days.

    '' if the birth date is malformed or a placeholder, or not before that day.
    """
    birth = _day(born)
    if birth is None or birth.year < _FIRST_BIRTH_YEAR or birth >= day:
        return ""
    months = (day.year - birth.year) * 12 + day.month - birth.month - (day.day < birth.day)
    if months == 0:
        return f"{(day - birth).days:03d}D"
    if months < 12:
        return f"{months:03d}M"
    return f"{months // 12:03d}Y" if months // 12 <= _OLDEST_YEARS else ""


def _acquired(header: Dataset) -> tuple[datetime | None, bool]:
    """Return the first usable date of acquisition, series or study, with its own time or midnight.

    A time has a time zone if the header states its offset from UTC, in TimezoneOffsetFromUTC (DICOM PS3.3, C.12.1.1.8)
    or in AcquisitionDateTime, which overrides it. A day without time cannot be converted, so it has none.

    Also return whether it has a time of its own.
    """
    whole = _WHOLE_TIME.fullmatch(text(header, "AcquisitionDateTime").strip())
    assert whole is not None  # it matches every text
    day, clock, suffix = whole.groups("")
    acquisition, *others = [
        (text(header, f"{event}Date"), text(header, f"{event}Time")) for event in ("Acquisition", "Series", "Study")
    ]
    stated = _zone(text(header, "TimezoneOffsetFromUTC"))
    own = _zone(suffix) or stated
    is_same = _moment(*acquisition) == _moment(day, clock)  # then the offset of one is that of the other
    # Multi-frame images have AcquisitionDateTime instead of two attributes.
    candidates = [(*acquisition, own if is_same else stated), (day, clock, own), *((*each, stated) for each in others)]
    for day, clock, zone in candidates:
        if found := _moment(day, clock):
            acquired, has_clock = found
            return acquired.replace(tzinfo=zone if has_clock else None), has_clock
    return None, True


def _moment(day: str, clock: str) -> tuple[datetime, bool] | None:
    """Return the time of a DA and a TM, and whether it is more than a day; None if it cannot be that of a CT."""
    on = _day(day)
    at = re.match(r"\d{6}|\d{4}|\d{2}", clock.strip(), flags=re.ASCII)
    try:
        time = datetime.strptime((at[0] if at else "").ljust(6, "0"), "%H%M%S").time()
    except ValueError:
        return None
    found = datetime.combine(on, time) if on else None
    # One day of tolerance: the scanner may be in another time zone than this machine.
    if found is None or found.year < _FIRST_CT_YEAR or found > datetime.now() + timedelta(days=1):
        return None
    return found, at is not None


def _day(day: str) -> date | None:
    """Return the day of a DA, None if it is malformed or does not exist."""
    if not re.fullmatch(r"\d{8}", day.strip(), flags=re.ASCII):
        return None
    try:
        return date.fromisoformat(day.strip())
    except ValueError:
        return None


def _zone(offset: str) -> timezone | None:
    """Return an offset from UTC, +0130 or -0800, as a time zone; None if it is malformed or out of range."""
    match = _OFFSET.fullmatch(offset.strip())
    if match is None:
        return None
    minutes = (-1 if match[1] == "-" else 1) * (60 * int(match[2]) + int(match[3]))
    return timezone(timedelta(minutes=minutes)) if minutes in _OFFSETS else None
