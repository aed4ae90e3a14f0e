"""Baselines: age and sex predict planted severity, and the lesion load rises with planted lesions."""

import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.cohort.dataset import Example, Examples
from pipeline.evaluation.baselines import age_sex_scores, lesion_load, lesion_loads
from pipeline.evaluation.discrimination import auroc
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.lesions import add_lesions
from pipeline.preprocessing.preprocess import prepare
from pipeline.preprocessing.preprocess_settings import Preprocessing
from tests.helpers.phantoms import thorax, volume
from tests.pipeline.evaluation.people import WINDOW_HU, people, tensor

SEVERE = 1


def test_age_sex_baseline_predicts_planted_severity(tmp_path: Path) -> None:
    train, test = people(tmp_path, 400, seed=1), people(tmp_path, 400, seed=2)
    scores = age_sex_scores(train, test, SEVERE, min_patients=10)
    assert scores is not None
    assert auroc(scores, test.targets[:, SEVERE]).value > 0.65
    ages = np.array([example.age_years for example in test.examples])
    assert np.corrcoef(scores, ages.astype(float))[0, 1] > 0.8


def test_no_baseline_is_fitted_to_few_patients_or_one_class(tmp_path: Path) -> None:
    test = people(tmp_path, 40)
    known = [e for e in people(tmp_path, 200).examples if e.pcr_positive]
    few = Examples(known[:9] + [Example(e.tensor, e.age_years, e.sex, False, e.severe) for e in known[9:]])
    one_class = Examples([e for e in known if e.severe])
    assert len(one_class) >= 10
    assert age_sex_scores(few, test, SEVERE, min_patients=10) is None
    assert age_sex_scores(one_class, test, SEVERE, min_patients=10) is None
    assert age_sex_scores(Examples(known), test, SEVERE, min_patients=10) is not None


def test_patient_without_age_and_sex_gets_a_score(tmp_path: Path) -> None:
    unknown = Examples([Example(tmp_path / "none.npy", None, None, True, None)])
    scores = age_sex_scores(people(tmp_path, 100), unknown, SEVERE, min_patients=10)
    assert scores is not None and np.isfinite(scores).all()


@pytest.mark.parametrize("load", [0.0, 0.05, 0.5, 1.0])
def test_lesion_load_is_the_share_of_lung_voxels_between_the_bounds(load: float) -> None:
    assert lesion_load(tensor(load), WINDOW_HU) == pytest.approx(load)


def test_voxels_outside_the_lungs_are_ignored_and_no_lungs_give_zero_load() -> None:
    scan = tensor(1.0)
    scan[1] = 0
    assert lesion_load(scan, WINDOW_HU) == 0


def test_lesion_load_of_a_synthetic_chest_rises_with_planted_lesions() -> None:
    """Uses the real preprocessing, including window and lung mask."""
    grid, settings = Grid((68, 80, 80), (4.2, 4.7, 4.7)), Preprocessing()
    body = thorax(grid)
    truth, loads = [], []
    for planted in (0.0, 0.06, 0.12, 0.2):
        lesions = add_lesions(body, grid, pattern="covid", load=planted, consolidated=0.6, rng=np.random.default_rng(4))
        truth.append(lesions.load)
        loads.append(lesion_load(prepare(volume(lesions.hu, grid), settings).tensor, settings.window_hu))
    assert all(np.diff(truth) > 0.02) and all(np.diff(loads) > 0.01), (truth, loads)
    assert loads[0] < 0.05


def test_lesion_loads_are_in_the_order_of_the_examples(tmp_path: Path) -> None:
    loads = lesion_loads(people(tmp_path, 5, loads=(0.0, 0.5)), WINDOW_HU)
    assert loads == pytest.approx([0, 0.5, 0, 0.5, 0])
    assert not any(map(math.isnan, loads))
