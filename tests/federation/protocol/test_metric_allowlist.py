"""Tests of the metric allow-list: it contains exactly the figures that the app computes."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import logit

from federation.protocol import metric_allowlist
from federation.protocol.metric_allowlist import EPSILON, EXAMPLES_OF, FIGURES, LOSS, SPLITS
from models.calibration import Platt
from models.familiarity import APPEARANCE_SIZE
from models.network_settings import LABELS
from pipeline.cohort.dataset import Examples
from pipeline.evaluation import discrimination, figures
from pipeline.evaluation.figures import Deployed
from pipeline.evaluation.histograms import BINS
from pipeline.evaluation.subgroups import GROUPS
from tests.pipeline.evaluation.people import WINDOW_HU, people

SHORTCUTS = {"scanner_from_embedding", "scanner_chance"} | {
    f"{name}{end}"
    for name in ("auroc_pcr_positive_tags", "auroc_severe_tags", "auroc_severe_outside")
    for end in ("", "_low", "_high")
}


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """A cohort with enough patients to define every figure."""
    return people(tmp_path_factory.mktemp("people"), 1500, loads=(0.0, 0.4))


@pytest.fixture
def logits(crowd: Examples) -> NDArray[np.float32]:
    """Logits of a weak model that cover the whole range of probabilities."""
    chances = np.random.default_rng(1).uniform(0.001, 0.999, crowd.targets.shape)
    return (logit(chances) + 0.3 * np.nan_to_num(crowd.targets)).astype(np.float32)


def test_training_figures_match_the_allowlist(crowd: Examples, logits: NDArray[np.float32]) -> None:
    found = figures.round_figures(logits, crowd.targets, min_patients=10)
    assert set(FIGURES["train"]) == {LOSS, EPSILON, *found}
    assert FIGURES["train.head"] == {}  # `fine_tune_site` reports no figure


def test_calibration_figures_match_the_allowlist(crowd: Examples, logits: NDArray[np.float32]) -> None:
    found = figures.calibration_figures(logits, crowd.targets, min_patients=10)
    assert all(FIGURES["evaluate.calibrate"][name].low <= value for name, value in found.items())
    assert all(value <= FIGURES["evaluate.calibrate"][name].high for name, value in found.items())
    looks = np.random.default_rng(1).normal(size=(20, APPEARANCE_SIZE)).astype(np.float32)
    found |= figures.distance_figures(
        looks, np.zeros(APPEARANCE_SIZE, np.float32), np.ones(APPEARANCE_SIZE, np.float32)
    )
    assert set(FIGURES["evaluate.calibrate"]) == set(found)


def test_test_figures_match_the_allowlist(
    crowd: Examples, logits: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discrimination, "BOOTSTRAPS", 5)
    points = {label: {"rule_out": -1.0, "rule_in": 1.0} for label in LABELS}
    deployed = Deployed({label: Platt() for label in LABELS}, points)
    found = figures.test_figures(logits, crowd, crowd, deployed, min_patients=2, histograms=True, window_hu=WINDOW_HU)
    table = FIGURES["evaluate.test"]
    assert set(table) - set(found) == SHORTCUTS
    assert set(found) <= set(table)
    for name, value in found.items():
        assert table[name].low <= value <= table[name].high
        assert type(value) is (int if table[name].counts is not None else float)


def test_every_kind_except_the_handshake_has_a_number_of_examples() -> None:
    assert set(EXAMPLES_OF) == set(FIGURES) - {"query.handshake"}
    assert FIGURES["query.handshake"] == FIGURES["evaluate.embed"] == {}
    assert len(FIGURES["evaluate.assign"]) == metric_allowlist.MAX_PROBED


def test_every_figure_has_a_range_and_a_known_patient_group() -> None:
    assert (metric_allowlist.LABELS, metric_allowlist.BINS, metric_allowlist.APPEARANCE_SIZE) == (
        LABELS,
        BINS,
        APPEARANCE_SIZE,
    )
    for kind, table in FIGURES.items():
        for name, figure in table.items():
            assert math.isfinite(figure.low) and math.isfinite(figure.high) and figure.low < figure.high
            assert figure.label in ("", metric_allowlist.ANY, *LABELS)
            assert figure.group == (name.partition("@")[2].removesuffix("_low").removesuffix("_high"))
            assert figure.group in ("", *GROUPS)
            assert bool(figure.label) == any(label in name for label in (*LABELS, LOSS))
            assert figure.fitted == ("age_sex" in name)
            if kind in EXAMPLES_OF and name not in SHORTCUTS and not kind.startswith("train"):
                assert SPLITS[figure.split] == (EXAMPLES_OF[kind],)


def test_audit_figures_use_all_or_held_out_patients() -> None:
    table = FIGURES["evaluate.test"]
    assert {name for name, figure in table.items() if figure.split == "all"} == {
        name for name in SHORTCUTS if "outside" not in name
    }
    assert {name for name, figure in table.items() if figure.split == "held_out"} == {
        name for name in SHORTCUTS if "outside" in name
    }


def test_allowlist_imports_no_heavy_library() -> None:
    heavy = "{'torch', 'sklearn', 'scipy', 'numpy'}"
    code = f"import sys; import {metric_allowlist.__name__}; print(*{heavy} & set(sys.modules))"
    root = Path(metric_allowlist.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == ""
