"""The files that `fedthorax score --out` writes, with an answer and without one."""

import json
from html import unescape
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from federation.cli.scoring import score_series
from models.familiarity import APPEARANCE_SIZE, Familiarity
from models.network import NetworkSettings, build_network
from models.refusal import Refusal
from models.release import save_release
from tests.helpers.chests import THICK, write_chest
from tests.helpers.descriptions import description


@pytest.fixture(scope="module")
def chest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "chest.nii.gz"
    write_chest(path)
    return path


def release(folder: Path, *, limit: float | None = None) -> Path:
    known = limit and Familiarity(
        mean=(0.0,) * APPEARANCE_SIZE, variance=(1.0,) * APPEARANCE_SIZE, limit=limit, sites=3
    )
    save_release(folder, build_network(NetworkSettings(), seed=1), description(familiarity=known or None))
    return folder


@pytest.mark.slow
def test_an_answer_is_written_with_label_maps_of_the_scan(chest: Path, tmp_path: Path) -> None:
    score_series([chest], model=release(tmp_path / "model"), out=tmp_path / "out", as_json=True)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"score.json", "score.html", "lungs.nii.gz", "opacities.nii.gz"}
    lungs = nib.load(tmp_path / "out" / "lungs.nii.gz")
    assert sorted(lungs.shape) == sorted(THICK.shape)
    assert set(np.unique(np.asarray(lungs.dataobj))) == {0, 1, 2}
    told = json.loads((tmp_path / "out" / "score.json").read_text())["lungs"]["regions"]["both"]["whole"]["ml"]
    voxel_ml = abs(np.linalg.det(lungs.affine[:3, :3])) / 1000
    assert np.count_nonzero(lungs.dataobj) * voxel_ml == pytest.approx(told, rel=0.03)


@pytest.mark.slow
def test_without_an_answer_the_lungs_are_measured_all_the_same(chest: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refused:
        score_series([chest], model=release(tmp_path / "model", limit=1e-3), out=tmp_path / "out", as_json=False)
    assert refused.value.code == "E_UNFAMILIAR"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"lungs.json", "lungs.html", "lungs.nii.gz", "opacities.nii.gz"}
    page = (tmp_path / "out" / "lungs.html").read_text()
    assert "(E_UNFAMILIAR)" in page and refused.value.remedy in unescape(page)
    assert page.count("<figure") == 3 and "Upper third" in page
    assert str(chest) not in page and "http://" not in page and "https://" not in page
    regions = json.loads((tmp_path / "out" / "lungs.json").read_text())["regions"]
    assert regions["both"]["whole"]["ml"] > 1500


def test_nothing_is_written_of_what_is_no_chest(tmp_path: Path) -> None:
    water = tmp_path / "water.nii.gz"
    nib.save(nib.Nifti1Image(np.full((60, 60, 40), 40, np.int16), np.diag([4.0, 4.0, 5.0, 1.0])), water)
    with pytest.raises(Refusal):
        score_series([water], model=release(tmp_path / "model"), out=tmp_path / "out", as_json=False)
    assert not (tmp_path / "out").exists()
