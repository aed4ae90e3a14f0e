"""Attacks on withheld class sizes: a learnt attacker reads all that leaves a site, and must not beat guessing.

The attacker is trained on other hospitals, whose class sizes it knows, with the same app and settings. Each attack also
runs without the rule, to show that it works: intervals, variances and steps of shares reveal class sizes.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from federation.protocol.figure_rounding import rounded
from federation.protocol.metric_allowlist import FIGURES, SPLITS, Kind
from federation.protocol.patient_counts import Patients
from models.compute import Compute
from models.network import SeverityNetwork, build_network
from models.network_settings import LABELS, NetworkSettings
from pipeline.cohort.dataset import Example, Examples
from pipeline.evaluation import discrimination, shortcuts
from pipeline.evaluation import figures as evaluation
from pipeline.evaluation.figures import Deployed, calibration_figures, may_report_loss, round_figures
from pipeline.evaluation.shortcuts import shortcut_figures
from pipeline.evaluation.subgroups import groups_of
from tests.helpers.scan_list import measures
from tests.pipeline.evaluation.people import WINDOW_HU, people

LEAST, SITES, TRAINED = 10, 240, 180
# Share of the variance of a class size that is explained at 60 hospitals. An attacker that guesses is below it. One
# that sees figures over small classes explains more than twice as much.
GUESSING = 0.1
TOTAL = {"train": 90, "validation": 50, "test": 60}
Sizes = dict[str, tuple[int, int]]  # patients with `severe` false and true, by split
THRESHOLDS = Deployed({}, {label: {"rule_out": -0.5, "rule_in": 0.5} for label in LABELS})

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network() -> SeverityNetwork:
    return build_network(NetworkSettings(), seed=1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit needs no network here: its features and its scores without lungs are drawn."""
    monkeypatch.setattr(discrimination, "BOOTSTRAPS", 5)
    monkeypatch.setattr(shortcuts, "PERMUTATIONS", 5)
    monkeypatch.setattr(shortcuts, "embed", lambda network, examples, compute: np.zeros((len(examples), 4), np.float32))
    monkeypatch.setattr(shortcuts, "outside_auroc", _outside)


def _outside(network: SeverityNetwork, examples: Examples, *, compute: Compute) -> discrimination.Auroc:
    rng = np.random.default_rng(len(examples))
    return discrimination.auroc(rng.normal(0, 1, len(examples)), examples.targets[:, LABELS.index("severe")])


def hospital(tensor: Path, sizes: Sizes, women: tuple[int, int], rng: np.random.Generator) -> dict[str, Examples]:
    """Patients by split; `severe` is unknown for the rest of TOTAL. `women`: in the classes of the test patients."""
    splits = {}
    for split, (negative, positive) in sizes.items():
        severe = [False] * negative + [True] * positive + [None] * (TOTAL[split] - negative - positive)
        sexes = ["F" if k < women[0] or negative <= k < negative + women[1] else "M" for k in range(len(severe))]
        if split != "test":
            sexes = list(rng.choice(["F", "M"], len(severe)))
        splits[split] = Examples(
            [
                Example(
                    tensor, float(rng.uniform(30, 90)), sex, None, value, measures(slices=int(rng.integers(99, 300)))
                )
                for value, sex in zip(severe, sexes, strict=True)
            ]
        )
    return splits


def counted(splits: dict[str, Examples]) -> Patients:
    """What the site's gateway counts."""
    with_value: dict[tuple[str, str, bool], int] = {}
    in_group: dict[tuple[str, str, bool, str], int] = {}
    for split, examples in splits.items():
        for example in examples.examples:
            if example.severe is not None:
                key = (split, "severe", example.severe)
                with_value[key] = with_value.get(key, 0) + 1
                for group in groups_of(example.age_years, example.sex, "SIEMENS"):
                    in_group[*key, group] = in_group.get((*key, group), 0) + 1
    return Patients({split: len(each) for split, each in splits.items()}, with_value, in_group)


def leaving(
    network: SeverityNetwork, splits: dict[str, Examples], rng: np.random.Generator, *, least: int
) -> dict[str, float]:
    """All figures that leave the site in a run with histograms, rounded as the app and the gateway do."""
    logits = {
        split: (2 * np.nan_to_num(each.targets, nan=0.5) - 1 + rng.normal(0, 1.2, each.targets.shape)).astype(
            np.float32
        )
        for split, each in splits.items()
    }
    of_kind: dict[Kind, dict[str, float]] = {
        "train": round_figures(logits["validation"], splits["validation"].targets, min_patients=least),
        "evaluate.calibrate": calibration_figures(
            logits["validation"], splits["validation"].targets, min_patients=least
        ),
        "evaluate.test": evaluation.test_figures(
            logits["test"],
            splits["test"],
            splits["train"],
            THRESHOLDS,
            min_patients=least,
            histograms=True,
            window_hu=WINDOW_HU,
        )
        | shortcut_figures(network, splits, min_patients=least),
    }
    if may_report_loss(splits["train"].targets, min_patients=least):
        x, y = discrimination.known_of(logits["train"][:, 1], splits["train"].targets[:, 1])
        of_kind["train"]["train_loss"] = float(np.mean(np.logaddexp(0, x) - y * x))
    patients = counted(splits)
    assert least < LEAST or all(
        patients.may_leave(FIGURES[kind][name], min_patients=least) for kind in of_kind for name in of_kind[kind]
    )
    return {f"{kind} {name}": v for kind in of_kind for name, v in rounded(of_kind[kind], kind, patients).items()}


def implied(seen: dict[str, float]) -> dict[str, float]:
    """The number of patients that the width of each interval of an AUROC implies, on the logit scale."""
    found = {}
    for name, value in seen.items():
        low, high = seen.get(f"{name}_low", 0.0), seen.get(f"{name}_high", 0.0)
        if 0 < low < value < high < 1:
            width = np.log(high / (1 - high)) - np.log(low / (1 - low))
            found[f"patients of {name}"] = float(1 / (value * (1 - value) * width**2))
    return found


def skill(seen: list[dict[str, float]], truth: NDArray[np.float64]) -> float:
    """Return the share of the variance of a class size that the attacker explains at hospitals it was not trained on.

    0 or less: the attacker is no better than the mean. Absence of a figure is also seen.
    """
    from sklearn.ensemble import ExtraTreesRegressor

    seen = [each | implied(each) for each in seen]
    names = sorted({name for each in seen for name in each})
    table = np.array([[each.get(name, -9.0) for name in names] for each in seen]) if names else np.zeros((len(seen), 1))
    forest = ExtraTreesRegressor(100, min_samples_leaf=3, max_features=0.5, random_state=0)
    guessed = forest.fit(table[:TRAINED], truth[:TRAINED]).predict(table[TRAINED:])
    left = truth[TRAINED:]
    return 1 - float(np.mean((guessed - left) ** 2) / np.var(left))


def attack(
    tensor: Path, network: SeverityNetwork, small: str, *, least: int, groups: bool = False
) -> tuple[float, float, float]:
    """Return the attacker's skill at both classes, and at the smaller one, of the split `small`, or of its men.

    One of the two has 1 to 9 patients. The other splits are large, and so are the women.
    """
    seen, truth = [], []
    for number in range(SITES):
        rng = np.random.default_rng([number, groups, len(small)])
        few, many = int(rng.integers(1, LEAST)), int(rng.integers(LEAST, 20))
        hidden = (few, many) if rng.random() < 0.5 else (many, few)
        sizes = {split: (int(rng.integers(15, 30)), int(rng.integers(12, 20))) for split in SPLITS["all"]}
        women = (0, 0)
        if groups:
            sizes[small] = (30, 30)  # known
            women = (30 - hidden[0], 30 - hidden[1])
        else:
            sizes[small] = hidden
        seen.append(leaving(network, hospital(tensor, sizes, women, rng), rng, least=least))
        truth.append(hidden)
    classes = np.array(truth, dtype=np.float64)
    return skill(seen, classes[:, 0]), skill(seen, classes[:, 1]), skill(seen, classes.min(axis=1))


@pytest.fixture(scope="module")
def tensor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return people(tmp_path_factory.mktemp("people"), 1).examples[0].tensor


@pytest.mark.parametrize("small", SPLITS["all"])
def test_withheld_class_sizes_of_a_split_cannot_be_recovered(
    tensor: Path, network: SeverityNetwork, small: str
) -> None:
    assert max(attack(tensor, network, small, least=LEAST)) < GUESSING


def test_withheld_class_sizes_of_a_group_cannot_be_recovered(tensor: Path, network: SeverityNetwork) -> None:
    assert max(attack(tensor, network, "test", least=LEAST, groups=True)) < GUESSING


@pytest.mark.parametrize("groups", [False, True])
def test_attack_succeeds_if_small_classes_are_reported(tensor: Path, network: SeverityNetwork, groups: bool) -> None:
    """Otherwise the other tests would show nothing."""
    assert max(attack(tensor, network, "test", least=1, groups=groups)) > 2 * GUESSING
