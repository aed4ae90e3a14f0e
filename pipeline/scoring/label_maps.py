"""Writes what was found in a scan as NIfTI label maps on the grid of the scan itself, for any viewer."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.refusal import Refusal
from pipeline.imaging.lung_mask import LungMask
from pipeline.imaging.volume import Grid, Volume
from pipeline.preprocessing.lesion_burden import Burden
from pipeline.scoring import reasons

LUNGS, OPACITIES = "lungs.nii.gz", "opacities.nii.gz"


def write_labels(found: Burden, volume: Volume, out: Path) -> None:
    """Write lungs.nii.gz (1 right lung, 2 left lung) and opacities.nii.gz (1 ground glass, 2 consolidation).

    `volume`: the scan upright, as `Score.volume`. The lungs have smooth outlines. For the opacities, each voxel of the
    scan has the label of the voxel of the working grid that it lies in: the file shows exactly what the table counts.
    Slices of a tilted gantry, which the volume has at their true places, get the nearest labels on their own grid.
    Raises Refusal E_REPORT_WRITE.
    """
    import nibabel as nib  # imported here because it is large, and most answers are not written as files

    shape = volume.hu.shape
    grid = volume.stored or Grid(shape, volume.affine)
    try:
        for fine, name in ((found.found.lungs_on(shape), LUNGS), (nearest_on(shape, found.opacities), OPACITIES)):
            labels = fine if volume.stored is None else LungMask(fine, volume.affine).on(grid.shape, grid.affine)
            image = nib.Nifti1Image(labels.transpose(2, 1, 0), grid.affine[:, [2, 1, 0, 3]])
            # Programs built on ITK cannot open an sform whose axes are not quite at right angles, as of a tilted gantry
            # or of a scan whose slices drift sideways. They read the qform, which cannot hold this, and read a DICOM
            # series so as well: voxel by voxel, the file lies on the series in each program.
            image.set_sform(image.affine, code="scanner")
            image.set_qform(_perpendicular(image.affine), code="scanner")
            image.header.set_xyzt_units("mm")
            nib.save(image, out / name)
    except OSError as error:
        raise Refusal(reasons.REPORT_WRITE, private=str(error)) from error


def _perpendicular(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an affine from (column, row, slice, 1) with the step between slices turned across them.

    nibabel would turn all three axes a little.
    """
    across = np.cross(affine[:3, 0], affine[:3, 1])
    across *= np.sign(across @ affine[:3, 2]) / np.linalg.norm(across)
    answer = affine.copy()
    answer[:3, 2] = across * np.linalg.norm(affine[:3, 2])
    return answer


def nearest_on(shape: tuple[int, ...], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the labels on a finer or coarser grid with the same outer faces: the nearest voxel's value."""
    places = [((np.arange(n) + 0.5) * size / n).astype(int) for n, size in zip(shape, labels.shape, strict=True)]
    return labels[np.ix_(*places)]
