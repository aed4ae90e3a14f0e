"""The lungs that the table shows: their volume in all outputs, and the checks of them."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from models.network import build_network
from models.network_settings import NetworkSettings
from models.release import load_release, save_release
from pipeline.imaging.volume import Volume, voxel_ml
from pipeline.phantom.anatomy import Grid
from pipeline.preprocessing.plausibility import look_at
from pipeline.preprocessing.preprocess import prepare, regions_of
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.scoring.label_maps import LUNGS, write_labels
from pipeline.scoring.lungs_alone import measure_lungs
from pipeline.scoring.quality_checks import checks_of_lungs
from pipeline.scoring.score import Score, score
from tests.helpers import phantoms
from tests.helpers.descriptions import description
from tests.helpers.dicom_files import write_series
from tests.pipeline.scoring.test_score import SPACING_MM, chest

# Its extent is not a multiple of the working grid's 4 mm, whose true steps are then longer or shorter.
ODD = Grid((77, 147, 152), (4.6, 2.33, 2.37))


@pytest.mark.slow
def test_volume_in_the_table_is_that_of_the_label_map(tmp_path: Path) -> None:
    volume = phantoms.volume(phantoms.thorax(ODD).hu, ODD)
    found = measure_lungs(volume)
    write_labels(found.burden, found.volume, tmp_path)
    written = nib.load(tmp_path / LUNGS)
    written_ml = np.count_nonzero(np.asarray(written.dataobj)) * voxel_ml(written.affine)
    assert found.burden.regions["both"]["whole"].ml == pytest.approx(written_ml, rel=0.006)
    assert found.prepared.lungs_ml == pytest.approx(written_ml, rel=0.006)


def scored(folder: Path, lungs: np.ndarray | None) -> Score:
    """Score a chest, with the lungs of a mask: 1 right, 2 left; shape as the chest's."""
    write_series(folder / "scan", chest(), spacing_mm=SPACING_MM)
    save_release(folder / "model", build_network(NetworkSettings(), seed=3), description())
    release = load_release(folder / "model", None)
    if lungs is None:
        return score(folder / "scan", release)
    plain = score(folder / "scan", release)
    image = nib.Nifti1Image(lungs.transpose(2, 1, 0), plain.volume.affine[:, [2, 1, 0, 3]])
    nib.save(image, folder / "mask.nii.gz")
    return score(folder / "scan", release, lungs=folder / "mask.nii.gz")


def values(told: Score) -> dict[str, float | str]:
    return {each.name: each.value for each in told.checks}


@pytest.mark.slow
def test_checks_describe_the_lungs_of_the_mask_that_the_table_shows(tmp_path: Path) -> None:
    whole = scored(tmp_path / "own", None)
    assert whole.volume is not None and isinstance(whole.volume, Volume)
    sides = whole.burden.found.lungs_on(whole.volume.hu.shape)
    small = sides.copy()
    left = np.argwhere(sides == 2)
    small[(sides == 2) & (np.arange(sides.shape[0])[:, None, None] > left[:, 0].mean())] = 0  # its upper half
    told = scored(tmp_path / "mask", small)
    table = told.burden.regions["both"]["whole"].ml
    assert values(told)["lungs"] == pytest.approx(table, abs=1)
    assert values(told)["lungs"] < 0.85 * float(values(whole)["lungs"])
    assert float(values(told)["smaller_lung"]) < float(values(whole)["smaller_lung"]) - 10


@pytest.mark.slow
def test_mask_that_an_end_or_a_side_of_the_scan_cuts_is_flagged() -> None:
    """The segmenter's lungs, which cut the model's input, end within the scan."""
    volume = phantoms.volume(phantoms.thorax(ODD).hu, ODD)
    prepared = prepare(volume, Preprocessing())
    assert prepared.found is not None
    anatomy = look_at(volume, prepared)

    def cut(sides: np.ndarray) -> tuple[float | str, str | None]:
        made = checks_of_lungs(prepared, anatomy, Preprocessing(), regions_of(prepared), sides)
        (check,) = [each for each in made if each.name == "lungs_cut"]
        return check.value, check.reason and check.reason.code

    lungs = prepared.found.regions * prepared.lungs
    assert cut(lungs) == ("no", None)
    low, high = lungs.copy(), lungs.copy()
    low[0, 20:30, 20:30] = 1
    assert cut(low) == ("lowest", "W_LUNGS_CUT")
    high[-1, 20:30, 20:30] = 1
    high[40, 20:30, 0] = 1
    assert cut(high) == ("highest and side", "W_LUNGS_CUT")
