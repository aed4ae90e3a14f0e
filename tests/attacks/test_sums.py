"""What a server learns of one hospital from pooled counts, if the model reads age and sex alone.

Such a model is the worst case: each logit is a group of patients, so the pooled counts are the federation's own table
of age, sex and outcome. A reader is fitted to many simulated federations, and says for others how one hospital's table
differs from the federation's.
"""

from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import RidgeCV

from federation.coordinator.summed_questions import summed_over
from federation.protocol.figure_rounding import rounded
from federation.protocol.metric_allowlist import EXAMPLES
from federation.protocol.patient_counts import Patients
from federation.protocol.summed_answers import CLASSES, LOGIT_BINS, SUMMED, logit_counts, sites_with
from pipeline.evaluation import calibration, discrimination
from pipeline.evaluation.histograms import exact_histograms
from pipeline.evaluation.ladder import RUNGS

GROUPS, PATIENTS, HOSPITALS = 8, 60, 5  # four age bands of both sexes; test patients of a hospital
LOGITS = np.linspace(-2, 2, GROUPS) + 0.01  # of the model, for each group
FITTED, READ = 300, 150  # federations
NAMES = logit_counts("severe")
Table = NDArray[np.int64]  # patients by outcome and group, shape (2, GROUPS)


class Federation(NamedTuple):
    """The hospitals' tables; what the server holds of the first one, and of all together."""

    tables: list[Table]
    own: list[float]
    pooled: list[float]


def hospital(rng: np.random.Generator) -> Table:
    """A hospital with its own mix of patients and its own share of severe ones."""
    groups = rng.choice(GROUPS, PATIENTS, p=rng.dirichlet(np.full(GROUPS, 4.0)))
    severe = rng.random(PATIENTS) < expit(LOGITS[groups] + rng.normal(0, 0.5))
    return np.stack([np.bincount(groups[severe == value], minlength=GROUPS) for value in (False, True)])


def patients_of(table: Table) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The logits and outcomes of a hospital's patients."""
    logits = [np.repeat(LOGITS, of_class) for of_class in table]
    return np.concatenate(logits), np.repeat([0, 1], [len(each) for each in logits])


def figures_of(table: Table) -> list[float]:
    """Figures that a hospital sends in a study without masks, as rounded."""
    x, y = patients_of(table)
    p = expit(x)
    found = {
        "loss_severe": float(np.mean(np.logaddexp(0, x) - y * x)),
        "auroc_severe": discrimination.auroc(x, y).value,
        "auprc_severe": discrimination.auprc(x, y).value,
        "prevalence_severe": float(y.mean()),
        "brier_severe": calibration.brier(p, y),
        "ece_severe": calibration.expected_calibration_error(p, y),
        "sens_at_rule_out_severe": float((x >= -1)[y == 1].mean()),
        "spec_at_rule_out_severe": float((x < -1)[y == 0].mean()),
        "sens_at_rule_in_severe": float((x >= 1)[y == 1].mean()),
        "spec_at_rule_in_severe": float((x < 1)[y == 0].mean()),
        **{f"net_benefit_severe_{at}": calibration.net_benefit(p, y, at / 100) for at in (10, 20, 30, 40, 50)},
    }
    sizes = {("test", "severe", value): int(table[int(value)].sum()) for value in CLASSES}
    return list(rounded(found, "evaluate.test", Patients({"test": PATIENTS}, sizes)).values())


def part_of(table: Table) -> dict[str, float]:
    """What a hospital adds to the sum."""
    counts = exact_histograms(*patients_of(table), RUNGS)
    nothing = dict.fromkeys(SUMMED["evaluate.test"].counts, 0)
    return {
        **nothing,
        sites_with("severe"): 1,
        **{name: int(counts[int(v), k]) for (v, k), name in NAMES.items()},
        EXAMPLES: PATIENTS,
    }


def federation(rng: np.random.Generator) -> Federation:
    tables = [hospital(rng) for _ in range(HOSPITALS)]
    summed = summed_over("evaluate.test", [part_of(table) for table in tables])
    return Federation(tables, figures_of(tables[0]), [summed.counts[name] for name in NAMES.values()])


def explained(held: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """The share of the variance of `wanted` that a reader explains in federations to which it was not fitted."""
    reader = RidgeCV(alphas=np.logspace(-1, 5, 13)).fit(held[:FITTED], wanted[:FITTED])
    rest, middle = wanted[FITTED:] - reader.predict(held[FITTED:]), wanted[:FITTED].mean(axis=0)
    return 1 - float((rest**2).sum() / ((wanted[FITTED:] - middle) ** 2).sum())


@pytest.fixture(scope="module")
def federations() -> list[Federation]:
    rng = np.random.default_rng(7)
    return [federation(rng) for _ in range(FITTED + READ)]


@pytest.fixture(scope="module")
def differences(federations: list[Federation]) -> NDArray[np.float64]:
    """How the first hospital's table differs from the mean of the federation's."""
    return np.array([(each.tables[0] - np.mean(each.tables, axis=0)).ravel() for each in federations])


@pytest.mark.slow
def test_pooled_counts_say_nothing_about_one_hospital_beyond_the_federation(
    federations: list[Federation], differences: NDArray[np.float64]
) -> None:
    assert explained(np.array([each.pooled for each in federations], dtype=float), differences) < 0.01


@pytest.mark.slow
def test_pooled_counts_explain_a_hospitals_table_only_as_the_part_of_the_sum_that_it_is(
    federations: list[Federation],
) -> None:
    """One of five hospitals is a fifth of the sum's variance, of whichever hospital. More hospitals reveal less."""
    tables = np.array([each.tables[0].ravel() for each in federations], dtype=float)
    found = explained(np.array([each.pooled for each in federations], dtype=float), tables)
    assert found < 1 / HOSPITALS + 0.03


@pytest.mark.slow
def test_a_hospitals_own_figures_reveal_much_of_its_table(
    federations: list[Federation], differences: NDArray[np.float64]
) -> None:
    """The control: the same reader, with the rounded figures of a study without masks."""
    assert explained(np.array([each.own for each in federations]), differences) > 0.25


@pytest.mark.slow
def test_the_federations_table_is_revealed_exactly(federations: list[Federation]) -> None:
    """What sums do not hide: with four hospitals that help the server, the fifth one's table follows by subtraction."""
    for each in federations[:20]:
        pooled = np.array(each.pooled).reshape(2, LOGIT_BINS)
        others = sum(exact_histograms(*patients_of(table), RUNGS) for table in each.tables[1:])
        left = pooled - others
        assert left.sum() == PATIENTS
        at = np.searchsorted(RUNGS, LOGITS, side="right") - 1
        assert (left[:, at] == each.tables[0]).all()
