"""Finds, selects and reads the one scan in a folder, zip or files that is to be scored."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from models.refusal import Refusal
from pipeline.imaging import reasons as imaging_reasons
from pipeline.imaging.archive import open_images
from pipeline.imaging.ct_slice import inspect_file
from pipeline.imaging.discovery import Series, different_images
from pipeline.imaging.lung_mask import LungMask
from pipeline.imaging.mask_reader import read_lung_mask
from pipeline.imaging.missing_slices import Stated, stated
from pipeline.imaging.pydicom_silence import quiet_pydicom
from pipeline.imaging.readers import find_scans, read_scan
from pipeline.imaging.volume import Volume
from pipeline.scoring import reasons
from pipeline.system.findings import Finding

_MOST_NAMED = 3  # unreadable files
BESIDES_THE_SCAN = {imaging_reasons.MODALITY, imaging_reasons.LOCALIZER, imaging_reasons.NOT_AXIAL}


@dataclass(frozen=True)
class OneScan:
    """The one scan of a source. Stays at the site: `series` identifies the patient.

    `other_series`: number of other series found, which are not used; `has_copy`: one of them is the same scan.
    `unread`: number of unreadable files.
    `seconds`: time to find and read it. `stated`: slice distances according to its headers. `mask`: external lungs.
    """

    series: Series
    volume: Volume
    other_series: int
    unread: int
    seconds: float
    stated: Stated = field(default_factory=Stated)
    mask: LungMask | None = None
    has_copy: bool = False


def read_one(
    source: Path | Sequence[Path],
    series_uid: str | None = None,
    *,
    lungs: Path | None = None,
    chosen: Callable[[Series], None] = lambda series: None,
) -> OneScan:
    """Find and read the one chest CT in a folder, zip or files.

    Parameters
    ----------
    source : Path or sequence of Path
        A folder, a zip, one file or several: a DICOM series, NIfTI or MetaImage.
    series_uid : str or None
        SeriesInstanceUID that chooses among several DICOM series.
    lungs : Path or None
        The hospital's own lung mask of this scan: NIfTI-1 or a DICOM segmentation.
    chosen : callable
        Called with the one series before its pixels are read, which may refuse it.

    Returns
    -------
    OneScan
        `volume`, the scan in HU, and what was found beside it. `series` names the patient and must stay at the site.

    Raises
    ------
    Refusal
        E_MIXED_PATIENT, E_MIXED_SERIES, E_UNKNOWN_SERIES, and those of `open_images`, `find_scans`, `read_scan` and
        `read_lung_mask`. Those of a scan beside files that could not be read say so too: W_UNREADABLE_BESIDES.
    """
    began = time.perf_counter()
    with open_images(source) as images:
        found, unread = find_scans(images)
        try:
            series, *copies = _choose(found, unread, series_uid)
            chosen(series)
            volume = read_scan(series)
        except Refusal as refusal:
            raise _with_unread(refusal, unread) if found and unread else refusal from refusal.__cause__
        said = stated(series)
        mask = None if lungs is None else read_lung_mask(lungs, series)
    return OneScan(series, volume, len(found) - 1, len(unread), time.perf_counter() - began, said, mask, bool(copies))


def _with_unread(refusal: Refusal, unread: Sequence[Finding]) -> Refusal:
    """Return the refusal with the number of unreadable files: they may hold the slices that seem to be missing."""
    codes = ", ".join(sorted({each.reason.code for each in unread}))
    named = "; ".join(each.detail for each in unread[:_MOST_NAMED])
    return refusal.with_besides(Refusal(reasons.UNREADABLE_BESIDES, private=named, files=len(unread), codes=codes))


def _choose(found: Sequence[Series], unread: Sequence[Finding], series_uid: str | None) -> list[Series]:
    """Select the series to score, followed by its copies under other UIDs.

    Scouts, reformatted and non-CT series are ignored, but a second scan is refused.
    """
    if not found:
        first = unread[0] if unread else Finding(imaging_reasons.NO_IMAGES)
        raise Refusal(first.reason, private=first.detail)
    asked = [s for s in found if series_uid in (None, s.series_uid)]
    if not asked:
        raise Refusal(reasons.UNKNOWN_SERIES, private=str(series_uid))
    patients = {(s.patient_id, s.issuer) for s in asked}
    if len(patients) > 1:
        raise Refusal(reasons.MIXED_PATIENT, patients=len(patients))
    if len(asked) == 1:
        return asked  # if it cannot be used, `read_scan` gives the best reason
    refusals = [_not_the_scan(s) for s in asked]
    scans = [s for s, refusal in zip(asked, refusals, strict=True) if refusal is None]
    if not scans:
        raise next(refusal for refusal in refusals if refusal)
    if len(scans) > 1 and not _are_copies(scans):
        choice = ", ".join(f"{s.series_uid} ({s.slices} images)" for s in scans)
        raise Refusal(reasons.MIXED_SERIES, series=len(scans), private=choice)
    return scans


def _are_copies(scans: Sequence[Series]) -> bool:
    """Whether all series have the same voxels at the same places; only one of them is in memory at a time.

    Before pixels are read, the numbers of images are compared; an image that was exported twice counts once.
    """
    digests = set()
    try:
        if len({each.slices for each in scans}) > 1 and len(set(map(different_images, scans))) > 1:
            return False
        for each in scans:
            volume = read_scan(each)
            place = np.ascontiguousarray(volume.affine.round(3) + 0.0)  # no negative zero
            digests.add(hashlib.sha256(volume.hu.tobytes() + place.tobytes()).digest())
    except Refusal:
        return False
    return len(digests) == 1


@quiet_pydicom()
def _not_the_scan(series: Series) -> Refusal | None:
    """Return why a series is not an axial CT scan, from its first file; a damaged scan still counts as a scan."""
    try:
        inspect_file(series.files[0])
    except Refusal as refusal:
        return refusal if refusal.reason in BESIDES_THE_SCAN else None
    return None
