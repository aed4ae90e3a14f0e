"""Writes small synthetic volumes as NIfTI and MetaImage, for tests of code that reads them."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import ArrayLike


def image(hu: ArrayLike, *, spacing_mm: tuple[float, float, float] = (2.0, 1.0, 1.0), **tags: str) -> sitk.Image:
    """Create an image from `hu`, shape (slices, rows, columns): slices up, rows to the back, columns to the left.

    `spacing_mm`: along (slices, rows, columns). `tags`: additional MetaImage fields, e.g. PatientAge.
    """
    made = sitk.GetImageFromArray(np.rint(np.asarray(hu)).astype(np.int16))
    made.SetSpacing(spacing_mm[::-1])
    made.SetOrigin((-8.0, -4.0, 100.0))
    for key, value in tags.items():
        made.SetMetaData(key, value)
    return made


def save(made: sitk.Image, path: Path, *, packed: bool = False) -> Path:
    """Write an image in the format of the suffix. `packed`: compress the voxels of a MetaImage."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(made, str(path), packed)
    return path
