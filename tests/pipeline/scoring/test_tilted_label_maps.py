"""Label maps of a tilted gantry: on the scan's own grid, as each kind of reader sees it."""

import math
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.imaging.discovery import find_series
from pipeline.imaging.mask_reader import read_lung_mask
from pipeline.imaging.series_reader import read_series
from pipeline.imaging.volume import voxel_ml
from pipeline.phantom.anatomy import Grid
from pipeline.preprocessing.lung_regions import dice
from pipeline.scoring.label_maps import LUNGS, OPACITIES, write_labels
from pipeline.scoring.lungs_alone import measure_lungs
from tests.helpers import phantoms
from tests.helpers.dicom_files import write_series

GRID = Grid((90, 110, 110), (3.4, 3.4, 3.4))
SHAPE, STEP_MM, PIXEL_MM = (76, 90, 100), 4.0, 3.4


@dataclass(frozen=True)
class Tilted:
    """A scan: its files, the lungs on its own grid, and the LPS places of its voxels, from the feet to the head."""

    files: list[Path]
    lungs: NDArray[np.bool_]
    lps_mm: NDArray[np.float64]
    answer: Path


@pytest.fixture(scope="module", params=[-14, 1.5, 14])
def scan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tilted:
    """Slices of a phantom that lean to the front or to the back; the table moves along the body. Measured."""
    angle, folder = math.radians(request.param), tmp_path_factory.mktemp("tilted")
    column = np.array([0, math.cos(angle), -math.sin(angle)])
    k, r, c = (axis[..., None] for axis in np.indices(SHAPE))
    start = np.array([-SHAPE[2] / 2 * PIXEL_MM, 0, GRID.origin_mm[2]]) - SHAPE[1] / 2 * PIXEL_MM * column
    lps_mm = start + k * np.array([0, 0, STEP_MM]) + r * PIXEL_MM * column + c * np.array([PIXEL_MM, 0, 0])
    places = np.moveaxis((lps_mm - GRID.origin_mm) / GRID.spacing_mm, -1, 0)[::-1]
    thorax = phantoms.thorax(GRID)
    hu = ndimage.map_coordinates(thorax.hu, places, order=1, cval=-1000)
    files = write_series(
        folder / "scan",
        np.rint(hu),
        spacing_mm=(STEP_MM, PIXEL_MM, PIXEL_MM),
        origin_mm=start,
        orientation=(1, 0, 0, *column),
        step_mm=(0, 0, STEP_MM),
    )
    (series,), _ = find_series(folder / "scan")
    volume = read_series(series)
    assert "W_TILT" in volume.flags
    found = measure_lungs(volume)
    write_labels(found.burden, found.volume, folder)
    lungs = ndimage.map_coordinates(thorax.lungs.astype(np.float32), places, order=1) > 0.5
    return Tilted(files, lungs, lps_mm, folder)


@pytest.mark.slow
def test_lungs_lie_on_the_voxels_of_the_scan(scan: Tilted) -> None:
    labels = np.asarray(nib.load(scan.answer / LUNGS).dataobj).transpose(2, 1, 0)
    assert labels.shape == scan.lungs.shape
    assert dice(labels > 0, scan.lungs) > 0.95
    assert np.asarray(nib.load(scan.answer / OPACITIES).dataobj).shape == scan.lungs.shape[::-1]


@pytest.mark.slow
def test_reader_of_the_sform_sees_each_voxel_at_its_true_place(scan: Tilted) -> None:
    """As nibabel does; the volume of the lungs is right too."""
    image = nib.load(scan.answer / LUNGS)
    corners = [[k, r, c] for k in (0, -1) for r in (0, -1) for c in (0, -1)]
    for k, r, c in corners:
        voxel = [index % size for index, size in zip((c, r, k), image.shape, strict=True)]
        assert np.allclose((image.affine @ [*voxel, 1])[:3], scan.lps_mm[k, r, c] * [-1, -1, 1], atol=0.01)
    true_ml = np.count_nonzero(phantoms.thorax(GRID).lungs) * np.prod(GRID.spacing_mm) / 1000
    assert np.count_nonzero(image.dataobj) * voxel_ml(image.affine) == pytest.approx(true_ml, rel=0.05)


@pytest.mark.slow
def test_reader_of_the_qform_lays_the_map_on_the_series_as_it_reads_it(scan: Tilted) -> None:
    """ITK knows no tilt: it reads the series and the map with the same, perpendicular axes."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in scan.files])
    series = reader.Execute()
    for name in (LUNGS, OPACITIES):
        image = sitk.ReadImage(str(scan.answer / name))
        assert image.GetSize() == series.GetSize()
        assert np.allclose(image.GetOrigin(), series.GetOrigin(), atol=0.01)
        assert np.allclose(image.GetSpacing(), series.GetSpacing(), atol=0.001)
        assert np.allclose(image.GetDirection(), series.GetDirection(), atol=0.001)


@pytest.mark.slow
def test_map_can_be_the_mask_of_its_scan(scan: Tilted) -> None:
    """As after a correction by hand, in a program that keeps the sform."""
    (series,), _ = find_series(scan.answer / "scan")
    volume, mask = read_series(series), read_lung_mask(scan.answer / LUNGS, series)
    again = measure_lungs(volume, mask).burden.regions["both"]["whole"].ml
    assert again == pytest.approx(measure_lungs(volume).burden.regions["both"]["whole"].ml, rel=0.02)
