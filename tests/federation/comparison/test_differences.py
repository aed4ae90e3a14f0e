"""Tests of the paired differences of `study compare`. All figures are invented."""

import json
from pathlib import Path

import numpy as np
import pytest

from federation.comparison.compare_runs import Comparison, compare
from federation.comparison.differences import EQUAL
from federation.protocol.study_config import Study
from federation.runs.figures_from_counts import ALL, pooled_row
from federation.runs.listing import MEAN
from federation.runs.results import ModelFigures, Results
from models.refusal import Refusal
from pipeline.evaluation.combining import (
    Interval,
    difference_at_site,
    difference_of_repeats,
    mean_of_repeats,
    mean_of_sites,
)
from tests.helpers.results_factory import make_results
from tests.helpers.run_files import write_run
from tests.helpers.summed_results import make_secure_results

SITES = ("north", "south", "west")


def run_with(server: Path, name: str, aurocs: dict[str, float], *, seed: int = 1, strategy: str = "FedAvg", **more):
    """Write a complete run whose federated model has these AUROCs of `severe`, with intervals of 0.1 to each side."""
    patients = more.pop("patients", 40)
    figures = {
        site: {
            "num-examples": float(patients),
            "auroc_severe": value,
            "auroc_severe_low": round(value - 0.1, 2),
            "auroc_severe_high": round(min(1.0, value + 0.1), 2),
        }
        for site, value in aurocs.items()
    }
    results: Results = make_results(list(aurocs), seed=seed)
    study = Study.model_validate(
        results.study.with_seed(seed).model_dump() | {"strategy": {"name": strategy, "options": {}}}
    )
    model = ModelFigures(name="federated", kind="federated", trained_at=list(aurocs), figures=figures)
    results = results.model_copy(update={"study": study, "models": [model], "run": name})
    write_run(server, name, of=study, results=results, number=len(list(server.glob("runs/*"))), **more)


def figures_of(comparison: Comparison) -> dict:
    (difference,) = comparison.differences()
    return difference.figures["auroc_severe"]


def test_single_runs_have_an_interval_over_patients_and_over_sites(tmp_path: Path) -> None:
    first, other = (0.70, 0.75, 0.80), (0.74, 0.77, 0.86)
    run_with(tmp_path, "trial-a", dict(zip(SITES, first, strict=True)))
    run_with(tmp_path, "trial-b", dict(zip(SITES, other, strict=True)))
    found = figures_of(compare(tmp_path, ["trial-a", "trial-b"]))
    at_sites = [
        difference_at_site(Interval(b, b - 0.1, b + 0.1), Interval(a, a - 0.1, a + 0.1))
        for a, b in zip(first, other, strict=True)
    ]
    assert found["north"].difference == pytest.approx(0.04)
    assert found["north"].patients == pytest.approx(at_sites[0][1:])
    assert found[EQUAL].difference == pytest.approx(0.04)
    assert found[EQUAL].patients == pytest.approx(mean_of_sites(at_sites)[1:])
    over_sites = mean_of_repeats(np.subtract(other, first))
    assert over_sites is not None
    assert found[EQUAL].sites_and_seeds == pytest.approx(over_sites[1:])
    assert found["north"].seeds is found[EQUAL].seeds is None, "one seed says nothing about other seeds"


def test_seeds_are_paired_by_number_and_others_are_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    table = {("FedAvg", seed): 0.7 + rng.normal(0, 0.05, 3) for seed in (1, 2, 3, 4)}
    table |= {("FedProx", seed): table["FedAvg", min(seed, 4)] + rng.normal(0.03, 0.01, 3) for seed in (2, 3, 4, 5)}
    for (strategy, seed), values in table.items():
        name = f"{strategy.lower()}-{seed}"
        run_with(tmp_path, name, dict(zip(SITES, values, strict=True)), seed=seed, strategy=strategy, group="both")
    comparison = compare(tmp_path, ["both"])
    (difference,) = comparison.differences()
    assert difference.seeds == (2, 3, 4)
    each = np.array([table["FedProx", seed] - table["FedAvg", seed] for seed in (2, 3, 4)])
    found = difference.figures["auroc_severe"]
    assert found["south"].difference == pytest.approx(each[:, 1].mean())
    for place, repeats in (("south", each[:, 1]), (EQUAL, each.mean(axis=1))):
        expected = mean_of_repeats(repeats, least=0.01)
        assert expected is not None
        assert found[place].seeds == pytest.approx(expected[1:])
    both = mean_of_repeats(each, least=0.01)
    assert both is not None
    assert found[EQUAL].sites_and_seeds == pytest.approx(both[1:])
    told = json.loads(json.dumps(comparison.to_json()))["differences"][0]
    assert told["seeds"] == [2, 3, 4]
    assert told["figures"]["auroc_severe"][EQUAL]["sites_and_seeds"] == pytest.approx(both[1:])


def test_site_with_other_test_patients_has_no_difference(tmp_path: Path) -> None:
    run_with(tmp_path, "trial-a", {"north": 0.7, "south": 0.7, "west": 0.7})
    run_with(tmp_path, "trial-b", {"north": 0.8, "south": 0.8, "west": 0.8}, patients=41)
    comparison = compare(tmp_path, ["trial-a", "trial-b"])
    assert comparison.differences()[0].figures == {}
    (warning,) = comparison.warnings
    assert (warning.code, "north, south, west" in str(warning)) == ("W_RUNS_UNPAIRED", True)


def test_site_of_one_run_only_is_not_compared(tmp_path: Path) -> None:
    run_with(tmp_path, "trial-a", {"north": 0.7, "south": 0.7})
    run_with(tmp_path, "trial-b", {"north": 0.8, "west": 0.9})
    found = figures_of(compare(tmp_path, ["trial-a", "trial-b"]))
    assert list(found) == ["north"]


def test_two_sites_have_no_interval_over_sites(tmp_path: Path) -> None:
    run_with(tmp_path, "trial-a", {"north": 0.7, "south": 0.7})
    run_with(tmp_path, "trial-b", {"north": 0.8, "south": 0.72})
    found = figures_of(compare(tmp_path, ["trial-a", "trial-b"]))
    assert found[EQUAL].patients is not None
    assert found[EQUAL].sites_and_seeds is None


def test_equal_rounded_figures_do_not_give_an_interval_without_width(tmp_path: Path) -> None:
    run_with(tmp_path, "trial-a", dict.fromkeys(SITES, 0.7))
    run_with(tmp_path, "trial-b", dict.fromkeys(SITES, 0.72))
    assert figures_of(compare(tmp_path, ["trial-a", "trial-b"]))[EQUAL].sites_and_seeds == pytest.approx((0.01, 0.03))


@pytest.mark.parametrize(("field", "what"), [("contract", "data contract"), ("golden", "golden volume")])
def test_runs_with_other_rules_for_labels_or_other_tensors_are_not_comparable(
    tmp_path: Path, field: str, what: str
) -> None:
    aurocs = dict(zip(SITES, (0.7, 0.75, 0.8), strict=True))
    run_with(tmp_path, "trial-a", aurocs)
    run_with(tmp_path, "trial-b", aurocs)
    assert compare(tmp_path, ["trial-a", "trial-b"]).warnings == []
    path = tmp_path / "runs" / "trial-b" / "results.json"
    results = Results.model_validate_json(path.read_bytes())
    sites = {name: site.model_copy(update={field: "f" * 16}) for name, site in results.sites.items()}
    path.write_text(results.model_copy(update={"sites": sites}).model_dump_json())
    (warning,) = compare(tmp_path, ["trial-a", "trial-b"]).warnings
    assert warning.code == "W_RUNS_UNLIKE" and what in warning.says


def test_damaged_note_of_another_run_does_not_stop_a_comparison(tmp_path: Path) -> None:
    for name in ("trial-a", "trial-b", "trial-c"):
        run_with(tmp_path, name, dict(zip(SITES, (0.7, 0.75, 0.8), strict=True)), group="" if "c" in name else "both")
    (tmp_path / "runs" / "trial-c" / "run.json").write_text('{"begun":')
    assert [run.name for run in compare(tmp_path, ["both"]).columns[0].runs] == ["trial-a", "trial-b"]
    assert len(compare(tmp_path, ["trial-a", "trial-b"]).columns) > 0
    with pytest.raises(Refusal, match="E_RUN_FILES"):
        compare(tmp_path, ["trial-a", "trial-c"])


@pytest.mark.parametrize(
    ("seeds", "told"), [((1, 2, 3), "3 seeds"), ((1, 1, 2), "2 seeds in 3 runs"), ((4, 4), "1 seed in 2 runs")]
)
def test_title_of_a_group_counts_different_seeds(tmp_path: Path, seeds: tuple[int, ...], told: str) -> None:
    for number, seed in enumerate(seeds):
        run_with(tmp_path, f"trial-{number}", dict.fromkeys(SITES, 0.7), seed=seed, group="both")
    (column,) = compare(tmp_path, ["both"]).columns
    assert column.title == f"both\nFedAvg, {told}"


def masked_run(server: Path, name: str, *, seed: int = 1, group: str = "", **options) -> Results:
    """Write a complete masked run; runs with the same options have the same patients."""
    results = make_secure_results(SITES, **options)
    results = results.model_copy(update={"study": results.study.with_seed(seed), "run": name})
    number = len(list(server.glob("runs/*")))
    write_run(server, name, of=results.study, results=results, number=number, group=group)
    return results


def test_masked_runs_differ_over_all_patients_and_are_not_paired_by_hospital(tmp_path: Path) -> None:
    first, other = masked_run(tmp_path, "trial-a"), masked_run(tmp_path, "trial-b", model=1)
    comparison = compare(tmp_path, ["trial-a", "trial-b"])
    found = figures_of(comparison)
    assert list(found) == [MEAN, ALL]
    a, b = (
        Interval(*(pooled_row(each)[f"auroc_severe{end}"] for end in ("", "_low", "_high"))) for each in (first, other)
    )
    assert found[ALL].difference == pytest.approx(b.value - a.value)
    assert found[ALL].patients == pytest.approx(difference_at_site(b, a)[1:]), "for any likeness of the two models"
    assert found[ALL].sites_and_seeds is found[ALL].seeds is None
    assert [warning.code for warning in comparison.warnings] == ["W_RUNS_MASKED"]
    assert {place for name, place, *_ in comparison.lines() if name == "auroc_severe"} == {MEAN, ALL}
    json.dumps(comparison.to_json(), allow_nan=False)


def test_masked_groups_of_different_seeds_have_an_interval_over_seeds(tmp_path: Path) -> None:
    """Hospitals take part in one masked run of a seed, so two masked groups share none."""
    aurocs: dict[str, list[float]] = {}
    for number, group in enumerate(("one", "two")):
        for seed in (1, 2, 3):
            results = masked_run(
                tmp_path, f"{group}-{seed}", seed=seed + 3 * number, group=group, model=10 * number + seed
            )
            aurocs.setdefault(group, []).append(pooled_row(results)["auroc_severe"])
    comparison = compare(tmp_path, ["one", "two"])
    found = figures_of(comparison)
    expected = difference_of_repeats(np.array(aurocs["two"]), np.array(aurocs["one"]), least=0.01)
    assert expected is not None
    assert found[ALL].seeds == pytest.approx(expected[1:])
    assert found[ALL].difference == pytest.approx(expected.value)
    assert found[ALL].sites_and_seeds is None
    assert [len(column.runs) for column in comparison.columns] == [3, 3]
    assert comparison.differences()[0].seeds == ()


def test_masked_runs_with_other_patients_have_no_difference(tmp_path: Path) -> None:
    masked_run(tmp_path, "trial-a")
    masked_run(tmp_path, "trial-b", seed=2, patients=150)
    comparison = compare(tmp_path, ["trial-a", "trial-b"])
    assert comparison.differences()[0].figures == {}
    assert [warning.code for warning in comparison.warnings] == ["W_RUNS_UNPAIRED", "W_RUNS_MASKED"]
    assert ALL in comparison.warnings[0].says


def test_masked_run_is_compared_with_another_by_the_mean_over_sites(tmp_path: Path) -> None:
    masked = masked_run(tmp_path, "trial-a", patients=40)
    patients = masked.models[0].summed.patients
    run_with(tmp_path, "trial-b", dict(zip(SITES, (0.7, 0.75, 0.8), strict=True)), patients=patients / 3)
    found = figures_of(compare(tmp_path, ["trial-a", "trial-b"]))
    assert list(found) == [MEAN]
    assert found[MEAN].patients
