"""The benchmark of learning: cells survive interruptions, and tables say what the cells that are there show."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.discrimination import auroc

if TYPE_CHECKING:
    from learning import Cell

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the benchmarks folder on `sys.path`: it is a folder of scripts, not a package."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


def cell(kind: str, seed: int, method: str, area: float, **changes: Any) -> "Cell":
    """A finished cell whose four AUROCs are `area`, with logits and labels of 60 patients."""
    from learning import Cell, cell_settings
    from learning_methods import Cost
    from learning_sites import FOREIGN, FORMS, UNSEEN

    draw = np.random.default_rng(seed)
    targets = (np.arange(120).reshape(60, 2) % 3 == 0).astype(np.float32)
    logits = (targets + draw.normal(size=(60, 2))).astype(np.float16).astype(np.float32)
    made = Cell(
        settings=cell_settings(FORMS["default"], kind),
        form="default",
        kind=kind,
        seed=seed,
        method=method,
        areas={at: {"severe": area, "pcr_positive": area} for at in (UNSEEN, FOREIGN)},
        logits={FOREIGN: logits},
        targets={FOREIGN: targets},
        cost=Cost(rounds=20, bytes_up=8_000_000, bytes_down=8_000_000, passes=40, processor_s=60),
    )
    return replace(made, **changes)


def written(folder: Path, *lines: str) -> Path:
    from learning import CELLS

    (folder / CELLS).write_text("".join(lines))
    return folder


def test_cells_are_read_as_they_were_written(tmp_path: Path) -> None:
    from learning import read_cells
    from learning_sites import FOREIGN, FORMS

    one = cell("8 small", 3, "ours", 0.8)
    (read,) = read_cells(written(tmp_path, one.to_json() + "\n"), FORMS["default"]).values()
    assert (read.key, read.areas, read.cost) == (one.key, one.areas, one.cost)
    np.testing.assert_array_equal(read.logits[FOREIGN], one.logits[FOREIGN])
    np.testing.assert_array_equal(read.targets[FOREIGN], one.targets[FOREIGN])


def test_cell_that_was_being_written_is_made_again(tmp_path: Path) -> None:
    from learning import read_cells
    from learning_sites import FORMS

    whole, cut = (cell("8 small", seed, "ours", 0.8).to_json() for seed in (1, 2))
    folder = written(tmp_path, whole + "\n", cut[:-30])
    assert list(read_cells(folder, FORMS["default"])) == [("8 small", 1, "ours")]


def test_cells_of_other_settings_are_not_used(tmp_path: Path) -> None:
    from learning import read_cells
    from learning_sites import FORMS

    old = cell("8 small", 1, "ours", 0.8, settings="0123456789abcdef")
    folder = written(tmp_path, old.to_json() + "\n")
    assert not read_cells(folder, FORMS["default"])
    assert not read_cells(written(tmp_path, cell("label", 1, "ours", 0.8).to_json() + "\n"), FORMS["quick"])


def test_tables_stay_those_of_earlier_settings_until_as_many_cells_are_made_again(tmp_path: Path) -> None:
    from learning import read_cells, read_earlier_cells
    from learning_sites import FORMS, KINDS
    from learning_tables import OURS, POOLED, report

    form = FORMS["default"]
    names = [f"{name} alone" for name in KINDS["size"].names]
    areas = {POOLED: 0.8, OURS: 0.8} | dict.fromkeys(names, 0.7)
    old = [cell("size", seed, name, area, settings="before") for seed in (1, 2) for name, area in areas.items()]
    new = [cell("size", seed, name, area + 0.1 * seed) for seed in (1, 2) for name, area in areas.items()]
    for finished, tables_are_new in ((new[:7], False), (new, True)):
        folder = written(tmp_path, *(each.to_json() + "\n" for each in old + finished))
        earlier = read_earlier_cells(folder, form)
        assert list(earlier) == ([] if tables_are_new else [each.key for each in old])
        made = report(read_cells(folder, form).values(), FORMS["quick"], earlier.values())
        pooled = next(row for row in made.tables[1].rows if row[1] == POOLED)
        assert pooled[3].startswith("0.950" if tables_are_new else "0.800")
        changed = [row[1:4] for table in made.tables[4:] for row in table.rows]
        shift = "+0.150 (-0.485 to +0.785)"
        best = "best hospital alone"
        assert changed == (
            [] if tables_are_new else [[POOLED, "2", shift], [OURS, "2", shift], [best, "1", "+0.100 (one seed)"]]
        )


@pytest.mark.slow
def test_cells_made_by_another_process_are_used() -> None:
    """The digest of a cell's settings must not depend on the process, as addresses and hashes of strings do."""
    from learning import cell_settings
    from learning_sites import FORMS, KINDS

    code = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
from learning import cell_settings
from learning_sites import FORMS, KINDS
print(*(cell_settings(FORMS["default"], kind) for kind in KINDS))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=BENCHMARKS.parent
    )
    assert ran.stdout.split() == [cell_settings(FORMS["default"], kind) for kind in KINDS]


def test_changed_study_has_other_cells_and_the_same_cohorts() -> None:
    from learning import cell_settings
    from learning_sites import FORMS

    usual = FORMS["default"]
    changed = usual.changed(["training.learning_rate=0.1", "study.rounds=8"])
    study = changed.settings(1, 8)
    assert (study.training.learning_rate, study.study.rounds, study.study.sites) == (0.1, 8, 8)
    assert cell_settings(changed, "label") != cell_settings(usual, "label")
    assert changed.cohorts(Path()) == usual.cohorts(Path())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("study", "nothing is set"),
        ("study.", "nothing is set"),
        ("study.rounds", "is not TABLE.KEY=VALUE"),
        ("study.rounds=", "is not TABLE.KEY=VALUE"),
        ("rounds=4", "is not TABLE.KEY=VALUE"),
        ("strategy.name=FedAvg", "is not TABLE.KEY=VALUE"),
        ("study.rounds=" + 5000 * "[", "nested too deeply"),
        ("study.rounds=" + 5000 * "1", "is not TABLE.KEY=VALUE"),
        ("study.rounds=0", "study.rounds: Input should be greater"),
        ("study.turns=4", "study.turns: Extra inputs"),
        ("stduy.rounds=4", "stduy: Extra inputs"),
    ],
)
def test_setting_that_no_study_has_is_a_wrong_argument(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from learning import main

    with pytest.raises(SystemExit) as caught:
        main(["--tables", "--cells", str(tmp_path), "--seeds", "101", "--set", text])
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert "argument --set: " in told
    assert says in told


def test_default_form_is_the_study_that_init_writes() -> None:
    from learning_sites import CONFIGS, FORMS

    from federation.protocol.study_config import Study
    from models.settings import load_settings

    usual, study = load_settings(CONFIGS / "study.toml", Study), FORMS["default"].settings(7, 8)
    free = {"name", "seed", "sites", "quorum", "synthetic"}
    assert study.study.model_dump(exclude=free) == usual.study.model_dump(exclude=free)
    assert usual.aggregation.summed_answers and not study.aggregation.summed_answers, "which changes no weight"
    assert study.model_dump(exclude={"study", "aggregation"}) == usual.model_dump(exclude={"study", "aggregation"})


def test_ratios_are_paired_by_seed_and_say_how_many_seeds_they_have() -> None:
    from learning_tables import Found

    pooled, ours = {1: 0.80, 2: 0.90, 3: 0.84, 4: 0.7}, {1: 0.78, 2: 0.91, 3: 0.80}
    cells = [cell("label", seed, "pooled", area) for seed, area in pooled.items()]
    cells += [cell("label", seed, "ours", area) for seed, area in ours.items()]
    mean = Found(cells).ratio("label", "ours", "severe")
    values = [ours[seed] / pooled[seed] for seed in ours]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert mean.count == 3
    assert (mean.value, mean.low, mean.high) == pytest.approx((np.mean(values), low, high))


def test_best_hospital_is_that_of_each_seed_and_needs_all_hospitals() -> None:
    from learning_sites import KINDS
    from learning_tables import BEST, Found

    areas = {1: (0.6, 0.7, 0.65), 2: (0.8, 0.7, 0.75), 3: (0.9, 0.5)}
    names = KINDS["size"].names
    cells = [
        cell("size", seed, f"{name} alone", area)
        for seed, of in areas.items()
        for name, area in zip(names, of, strict=False)
    ]
    found = Found(cells)
    best = {seed: each.areas["unseen"]["severe"] for seed, each in found.row("size", BEST, "severe").items()}
    assert best == {1: 0.7, 2: 0.8}, "of seed 3 one hospital is missing"


def test_twenty_hospitals_share_the_local_models_of_the_first_eight() -> None:
    from learning_methods import NAIVE, OURS, POOLED, methods
    from learning_sites import KINDS
    from learning_tables import BEST, Found

    assert KINDS["20 small"].places[:8] == KINDS["8 small"].places
    assert methods("20 small") == [POOLED, OURS, NAIVE]
    alone = [cell("8 small", 1, f"{name} alone", 0.6 + 0.01 * k) for k, name in enumerate(KINDS["8 small"].names)]
    found = Found([*alone, cell("20 small", 1, "ours", 0.8)])
    assert found.gain("20 small", OURS, BEST, "severe").value == pytest.approx(0.13)


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ((0.99, 0.985, 0.99), "met"),
        ((0.90, 1.10, 1.00), "met by the mean; its interval extends too low"),
        ((0.95, 0.96, 0.95), "**missed**"),
        ((0.99,), "too few seeds"),
    ],
)
def test_goal_is_met_only_by_mean_and_interval(ratios: tuple[float, ...], verdict: str) -> None:
    from learning_sites import FORMS
    from learning_tables import report

    cells = [cell("8 small", seed, "pooled", 0.8) for seed in range(len(ratios))]
    cells += [cell("8 small", seed, "ours", 0.8 * ratio) for seed, ratio in enumerate(ratios)]
    goals, *_ = report(cells, FORMS["quick"]).tables
    assert [row[goals.head.index("goal met")] for row in goals.rows] == [verdict] * 2
    assert [row[goals.head.index("seeds")] for row in goals.rows] == [str(len(ratios))] * 2


@pytest.mark.parametrize(("gain", "verdict"), [(0.03, "met"), (0.01, "**missed**")])
def test_small_hospitals_must_gain_over_the_best_one_alone(gain: float, verdict: str) -> None:
    from learning_sites import FORMS, KINDS
    from learning_tables import report

    cells = [cell("8 small", seed, "ours", 0.7 + gain) for seed in (1, 2)]
    cells += [cell("8 small", seed, f"{name} alone", 0.7) for seed in (1, 2) for name in KINDS["8 small"].names]
    goals, *_ = report(cells, FORMS["quick"]).tables
    assert {row[goals.head.index("gain of 0.02")] for row in goals.rows} == {verdict}


def test_interval_at_the_foreign_hospital_covers_the_choice_of_its_patients() -> None:
    """Seeds that agree exactly leave only the error through the patients, which is that of one AUROC."""
    from learning_sites import FOREIGN
    from learning_tables import Found

    shared = cell("label", 1, "pooled", 0.8)
    cells = [replace(shared, seed=seed) for seed in range(30)]
    mean = Found(cells).mean("label", "pooled", "severe", FOREIGN)
    exact = auroc(shared.logits[FOREIGN][:, 1], shared.targets[FOREIGN][:, 1])
    half = (exact.high - exact.low) / 2
    assert (mean.high - mean.low) / 2 == pytest.approx(half * stats.t.ppf(0.975, 29) / 1.96, rel=0.2)
    assert Found(cells).ratio("label", "pooled", "severe", FOREIGN).low == 1.0, "a ratio to itself has no error"


def test_tables_of_no_cells_are_empty() -> None:
    from learning_sites import FORMS
    from learning_tables import report

    assert not any(table.rows for table in report([], FORMS["default"]).tables)


@pytest.mark.slow
def test_each_method_trains_a_model_and_reports_its_cost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two small hospitals on a coarse grid, of which one has the confounder; one round."""
    import learning_sites
    from learning import Cell, run
    from learning_methods import NAIVE, OURS, POOLED, Job
    from learning_sites import FORMS, KINDS, UNSEEN, OtherDose

    places = [replace(place, patients=14) for place in KINDS["8 small"].places[:2]]
    assert places[1].confounder == OtherDose()
    monkeypatch.setitem(KINDS, "8 small", replace(KINDS["8 small"], places=tuple(places)))
    form = replace(FORMS["quick"], name="tiny", pixel=2.0, unseen_patients=20)
    form = form.changed(["study.rounds=1", "network.widen_factor=0.0625", "preprocessing.shape=[16, 16, 16]"])
    unseen = learning_sites.test_orders(tmp_path, form, 1)[0]
    monkeypatch.setattr("learning.test_orders", lambda *_: [unseen])
    for order in [*learning_sites.orders(tmp_path, form, "8 small", 1), unseen]:
        learning_sites.write(order)
    found: dict[str, Cell] = {}
    for method in (POOLED, OURS, NAIVE, f"{places[0].at.name} alone"):
        found[method] = run(Job(tmp_path, form, "8 small", 1, method))
    assert all(set(each.areas) == {UNSEEN} and np.isfinite(each.logits[UNSEEN]).all() for each in found.values())
    assert len({each.logits[UNSEEN].tobytes() for each in found.values()}) == 4, "four different models"
    assert found[OURS].cost.rounds == found[NAIVE].cost.rounds == 1
    assert found[OURS].cost.bytes_up >= 0.9 * found[NAIVE].cost.bytes_up > 0 == found[POOLED].cost.bytes_up
