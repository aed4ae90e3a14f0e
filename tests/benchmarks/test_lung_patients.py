"""The benchmark of patients' lungs: a scan and a mask from files, each side compared with its own."""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.phantom.anatomy import Grid
from tests.helpers import phantoms
from tests.helpers.lung_masks import write_nifti

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GRID = Grid((70, 90, 90), (4.0, 4.0, 4.0))


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the benchmarks folder on `sys.path`: it is a folder of scripts, not a package."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


def test_lungs_are_compared_with_the_mask_side_by_side(tmp_path: Path) -> None:
    from lung_patients import judge, text
    from run import circumstances

    thorax = phantoms.thorax(GRID)
    volume = phantoms.volume(thorax.hu, GRID)
    scan = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(volume.hu.T, volume.affine[:, [2, 1, 0, 3]]), scan)
    is_left = np.arange(GRID.shape[2]) >= GRID.shape[2] / 2
    sides = (thorax.lungs * np.where(is_left, 2, 1)).astype(np.uint8)
    found = {
        name: judge(scan, write_nifti(tmp_path / f"{name}.nii.gz", labels, volume.affine))
        for name, labels in {"sides": sides, "both": np.minimum(sides, 1)}.items()
    }
    assert min(found["sides"][key] for key in ("dice", "right", "left", "threshold")) > 0.93
    assert found["sides"]["litres_of_mask"] == pytest.approx(thorax.lungs.sum() * 64e-6)
    assert found["both"] == found["sides"] | {"right": None, "left": None}
    page = text({**circumstances(), "weights": "0" * 64, "scans": found, "fluid": {}})
    assert f"| both | {found['both']['dice']:.3f} | – | – |" in page
    assert "fluid" not in page


def test_fluid_that_counts_as_lung_is_measured(tmp_path: Path) -> None:
    from lung_patients import judge_fluid, of_fluid

    thorax = phantoms.thorax(GRID)
    volume = phantoms.volume(thorax.hu, GRID)
    scan = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(volume.hu.T, volume.affine[:, [2, 1, 0, 3]]), scan)
    beside = (thorax.hu > -200) & ~thorax.lungs & (np.arange(GRID.shape[0]) == 35)[:, None, None]
    inside = thorax.lungs & (np.arange(GRID.shape[0]) == 35)[:, None, None]
    found = {
        name: judge_fluid(scan, write_nifti(tmp_path / f"{name}.nii.gz", mask.astype(np.uint8), volume.affine))
        for name, mask in {"inside": inside, "beside": beside}.items()
    }
    assert found["inside"]["fluid_ml"] == pytest.approx(inside.sum() * 0.064)
    assert found["inside"]["as_lung_ml"] > 0.9 * found["inside"]["fluid_ml"]
    assert found["beside"]["as_lung_ml"] < 0.1 * found["beside"]["fluid_ml"]
    assert any(line.startswith("| inside |") for line in of_fluid(found))
