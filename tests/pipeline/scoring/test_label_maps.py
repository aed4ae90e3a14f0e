"""Tests of label maps on the scan's own grid: each voxel has the label that the table counts at its position."""

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from pipeline.imaging.volume import Volume
from pipeline.scoring.label_maps import LUNGS, OPACITIES, nearest_on, write_labels
from tests.helpers.lungs import burden_of
from tests.pipeline.scoring.test_html_report import prepared


def test_labels_are_written_on_the_voxel_grid_of_the_scan(tmp_path: Path) -> None:
    """The scan has half the voxel spacing: 8 of its voxels per voxel of the table. Positions in mm agree."""
    scan = prepared()
    scan.image_hu[12:20, 15:25, 12:20] = -500
    found = burden_of(scan)
    fine = np.kron(scan.image_hu, np.ones((2, 2, 2))).astype(np.int16)
    move = np.diag([0.5, 0.5, 0.5, 1.0])
    move[:3, 3] = -0.25
    write_labels(found, Volume(fine, scan.affine @ move), tmp_path)
    lungs, opacities = (nib.load(tmp_path / name) for name in (LUNGS, OPACITIES))
    assert lungs.shape == opacities.shape == fine.shape[::-1]
    written = np.asarray(opacities.dataobj)
    assert np.count_nonzero(written) == 8 * np.count_nonzero(found.opacities)
    centre = lungs.affine @ [*np.argwhere(written).mean(axis=0), 1.0]
    wanted = scan.affine @ [*np.argwhere(found.opacities).mean(axis=0), 1.0]
    assert np.allclose(centre, wanted)
    right, left = (np.argwhere(np.asarray(lungs.dataobj) == value).mean(axis=0) for value in (1, 2))
    # RAS: x increases towards the patient's right.
    assert (lungs.affine @ [*right, 1])[0] > (lungs.affine @ [*left, 1])[0]


@pytest.mark.parametrize("degrees", [0.0, 0.02, 0.3, 0.9])
def test_itk_opens_the_files_of_a_scan_whose_slices_drift_sideways(degrees: float, tmp_path: Path) -> None:
    """A reader leaves such a drift as it is, which makes the axes not quite orthogonal."""
    scan = prepared()
    found = burden_of(scan)
    affine = scan.affine.copy()
    affine[1, 0] = math.tan(math.radians(degrees)) * affine[2, 0]
    write_labels(found, Volume(scan.image_hu.astype(np.int16), affine), tmp_path)
    for name in (LUNGS, OPACITIES):
        image = sitk.ReadImage(str(tmp_path / name))
        assert image.GetSize() == scan.image_hu.shape[::-1]
        assert np.allclose(nib.load(tmp_path / name).affine, affine[:, [2, 1, 0, 3]], atol=1e-4)
        assert np.allclose(image.GetOrigin(), affine[:3, 3] * [-1, -1, 1], atol=1e-3)


def test_resampling_takes_the_nearest_label() -> None:
    labels = np.arange(6, dtype=np.uint8).reshape(6, 1, 1)
    assert nearest_on((3, 2, 2), labels)[:, 0, 0].tolist() == [1, 3, 5]
    assert nearest_on((12, 1, 1), labels)[:, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
