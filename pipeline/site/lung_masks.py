"""Finds the hospital's own lung masks and assigns them to the series of its scans."""

import hashlib
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from models.refusal import Refusal
from pipeline.imaging.discovery import Series, fingerprint, is_companion, walk
from pipeline.imaging.nifti_reader import is_volume_file, stem
from pipeline.imaging.pydicom_silence import quiet_pydicom
from pipeline.imaging.segmentation import referenced_series
from pipeline.site import reasons

Masks = dict[str, list[tuple[str, Path]]]  # (name, path) of the masks, by UID or name of their series


@quiet_pydicom()
def find_masks(folder: Path | None, *, outside: Path) -> Masks:
    """Return the lung masks in a folder (searched to any depth); none without a folder.

    A volume file belongs to the DICOM series whose SeriesInstanceUID is its name, or to the volume file with the same
    name; a DICOM segmentation belongs to the series to which it refers. Other files are ignored.

    `outside`: the folder of the scans, all of whose volume files count as scans. The settings are refused if they name
    a folder in it; here a link into it is refused too.

    Raises Refusal E_MASK_FOLDER.
    """
    found: Masks = defaultdict(list)
    if folder is None:
        return found
    if not folder.is_dir() or folder.resolve().is_relative_to(outside.resolve()):
        raise Refusal(reasons.MASK_FOLDER, private=str(folder))
    for name, path in walk(folder, lambda name: is_volume_file(name) or not is_companion(name), []):
        keys = (stem(path),) if is_volume_file(path.name) else referenced_series(path)
        for key in keys:
            found[key].append((name, path))
    return found


def with_masks(series: Series, masks: Masks) -> Series:
    """Return the series with its masks, and with a fingerprint that changes when one of them does."""
    first = series.files[0]
    mine = masks.get(stem(first) if is_volume_file(first.name) else series.series_uid, ())
    if not mine:
        return series
    together = hashlib.sha256(f"{series.fingerprint}|{fingerprint(mine)}".encode()).hexdigest()
    return replace(series, lung_masks=tuple(path for _, path in mine), fingerprint=together)
