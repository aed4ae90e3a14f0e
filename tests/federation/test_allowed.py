"""The figures that may leave: what the app computes, no more and no less."""

import math

from federation import allowed
from federation.allowed import EPSILON, EVALUATE_METRICS, FIGURES, LOSS, TRAIN_METRICS
from models.network import LABELS
from pipeline.evaluate import METRICS


def test_the_table_names_what_the_app_reports() -> None:
    assert allowed.LABELS == LABELS
    assert set(TRAIN_METRICS) == {LOSS, EPSILON, *METRICS}
    assert set(EVALUATE_METRICS) == {
        *METRICS,
        *(f"{part}_{label}" for part in ("slope", "intercept") for label in LABELS),
    }


def test_every_figure_has_a_range_and_patients_behind_it() -> None:
    for table in FIGURES.values():
        for name, figure in table.items():
            assert math.isfinite(figure.low) and math.isfinite(figure.high) and figure.low < figure.high
            assert figure.label in ("", *LABELS)
            assert name.endswith(figure.label)
            assert figure.both == name.startswith("auroc")


def test_figures_are_over_the_patients_that_the_app_looks_at() -> None:
    """Training is judged on validation patients, the final model on test patients, its calibration on validation."""
    train, evaluate = FIGURES["train"], FIGURES["evaluate"]
    assert {train[name].split for name in METRICS} == {"validation"}
    assert train[LOSS].split == "train"
    assert {evaluate[name].split for name in METRICS} == {"test"}
    assert {figure.split for name, figure in evaluate.items() if name not in METRICS} == {"validation"}
