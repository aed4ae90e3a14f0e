"""Tests of listing runs from their files and of comparing runs. All figures are invented."""

import json
import math
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from federation.comparison.compare_runs import compare
from federation.protocol.study_config import Study
from federation.runs import submission
from federation.runs.figures_from_counts import ALL
from federation.runs.listing import (
    MEAN,
    detail,
    final_table,
    final_values,
    label_of_rounds,
    last_versions,
    list_lines,
    masked_lines,
    mean_interval_of,
    round_lines,
    summaries,
)
from federation.runs.progress import Progress, duration, standing
from federation.runs.results import read_results
from federation.runs.run_folder import find_run, run_names
from federation.superlink.reasons import NO_SERVER, RUN_UNKNOWN, SERVER_UNREACHABLE
from models.refusal import Refusal
from tests.helpers.results_factory import make_results
from tests.helpers.run_files import entry, study, write_run
from tests.helpers.summed_results import make_secure_results


def make(server: Path, name: str, *, seed: int = 1, group: str = "", sites: int = 2, number: int = 0, **changes):
    """Write a completed run with matching study, results and note."""
    results = make_results(sites, seed=seed, **changes)
    results = results.model_copy(update={"run": name, "study": results.study.with_seed(seed)})
    write_run(server, name, number=number, of=results.study, history=results.history, group=group, results=results)
    return results


def test_runs_are_listed_in_order_of_their_start(tmp_path):
    write_run(tmp_path, "trial-b", number=1, history=[entry(1), entry(2)], ended="stopped", group="seeds")
    write_run(tmp_path, "trial-a", number=2)
    write_run(tmp_path, "trial-c", number=0)
    assert run_names(tmp_path) == ["trial-c", "trial-b", "trial-a"]
    line = list_lines(summaries(tmp_path))[1]
    assert line[:6] == ["trial-b", "stopped", "2 of 4", "CenteredClip", "1", "seeds"]
    assert line[6] == "validation 0.70", "the figure of the last round, which has no interval"


def test_complete_run_is_listed_with_its_test_figure_and_interval(tmp_path):
    results = make(tmp_path, "trial-a")
    (line,) = list_lines(summaries(tmp_path))
    assert line[6] == final_table(results)[1][0][-1]
    assert re.fullmatch(r"0\.\d\d \(0\.\d\d–[01]\.\d\d\)", line[6])
    (tmp_path / "runs" / "trial-a" / "results.json").write_text("{")
    assert list_lines(summaries(tmp_path))[0][1] == "completed", "an unreadable result does not hide the run"


def test_unreadable_run_does_not_hide_other_runs(tmp_path):
    write_run(tmp_path, "trial-a")
    for name, file in (("trial-b", "study.json"), ("trial-c", "run.json"), ("trial-d", "history.json")):
        (write_run(tmp_path, name) / file).write_text("{")
    states = {run["run"]: run["state"] for run in summaries(tmp_path)}
    assert states == {"trial-a": "completed"} | dict.fromkeys(("trial-b", "trial-c", "trial-d"), "E_RUN_FILES")
    assert len(list_lines(summaries(tmp_path))) == 4


@pytest.mark.parametrize("absent", ["means", "sites", "seconds", "bytes_up", "bytes_down"])
def test_round_that_lacks_a_part_makes_the_history_unreadable(tmp_path, absent):
    odd = entry(1)
    del odd[absent]
    write_run(tmp_path, "trial-a", history=[odd])
    write_run(tmp_path, "trial-b", number=1)
    states = {run["run"]: run["state"] for run in summaries(tmp_path)}
    assert states == {"trial-a": "E_RUN_FILES", "trial-b": "completed"}
    with pytest.raises(Refusal, match="E_RUN_FILES"):
        detail(tmp_path, "trial-a")


@pytest.mark.parametrize(
    "odd",
    [{"means": None}, {"means": {"auroc_severe": "high"}}, {"sites": 2}, {"seconds": math.nan}, {"refused": ["north"]}],
)
def test_round_with_another_kind_of_value_makes_the_history_unreadable(tmp_path, odd):
    write_run(tmp_path, "trial-a", history=[entry(1, **odd)])
    assert [run["state"] for run in summaries(tmp_path)] == ["E_RUN_FILES"]


def test_versions_that_are_no_mapping_make_a_history_unreadable(tmp_path):
    write_run(tmp_path, "trial-a", history=[{"step": "handshake", "versions": ["0.1.0"]}])
    write_run(tmp_path, "trial-b", history=[{"step": "handshake", "versions": {"north": "0.1.0"}}])
    assert last_versions(tmp_path) == {"north": "0.1.0"}


def without_examples(results):
    del results["models"][0]["figures"]["north"]["num-examples"]


def without_seconds(results):
    for each in results["history"]:
        each.pop("seconds", None)


def examples_below_none(results):
    results["models"][0]["figures"]["north"]["num-examples"] = -3.0


@pytest.mark.parametrize("damage", [without_examples, without_seconds, examples_below_none])
def test_results_that_lack_what_a_report_needs_are_refused(tmp_path, damage):
    make(tmp_path, "trial-a")
    path = tmp_path / "runs" / "trial-a" / "results.json"
    odd = json.loads(path.read_bytes())
    damage(odd)
    path.write_text(json.dumps(odd))
    with pytest.raises(Refusal, match="E_RESULTS"):
        read_results(path.parent)
    (run,) = summaries(tmp_path)
    assert (run["state"], run["test_auroc_severe"]) == ("completed", None)


def test_run_of_an_older_version_without_a_note_is_listed(tmp_path):
    folder = write_run(tmp_path, "trial-a")
    (folder / "run.json").unlink()
    assert summaries(tmp_path)[0]["state"] == "interrupted"
    (folder / "release").mkdir()
    assert summaries(tmp_path)[0]["state"] == "completed"


@pytest.mark.parametrize("name", ["trial-x", "../trial-a", "", "."])
def test_unknown_name_is_refused_with_the_list_of_runs(tmp_path, name):
    write_run(tmp_path, "trial-a")
    with pytest.raises(Refusal, match="E_RUN_UNKNOWN") as caught:
        find_run(tmp_path, name)
    assert caught.value.private.endswith(": trial-a")


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ("running", "running"),
        ("pending", "waiting"),
        ("finished:stopped", "stopped"),
        (Refusal(RUN_UNKNOWN), "interrupted"),
        (Refusal(SERVER_UNREACHABLE, port=1), "server down"),
        (Refusal(NO_SERVER), "server down"),
    ],
)
def test_state_of_a_run_without_a_recorded_end_comes_from_the_server(tmp_path, monkeypatch, says, expected):
    asked = []

    def status(folder, run_id):
        asked.append(run_id)
        if isinstance(says, Refusal):
            raise says
        return says

    monkeypatch.setattr(submission, "status", status)
    write_run(tmp_path, "trial-a", ended=None, run_id=7)
    write_run(tmp_path, "trial-b", ended="completed", run_id=8)
    assert [run["state"] for run in summaries(tmp_path)] == [expected, "completed"]
    assert asked == [7]


def test_detail_shows_rounds_and_locations(tmp_path):
    refused = entry(2, sites=["north"], refused={"south": "E_SITE_MISSING"}, capped=["north"])
    lost = entry(3, sites=[], lost=True, lost_for="E_QUORUM", means={})
    history = [{"handshake": "first", "refused": {}}, entry(1), refused, lost]
    folder = write_run(tmp_path, "trial-a", history=history)
    (folder / "release").mkdir()
    told = detail(tmp_path, "trial-a")
    lines = round_lines(told["history"])
    assert [line[0] for line in lines] == ["1", "2", "3"]
    assert lines[1][1] == "north"
    assert lines[1][-1] == "south: E_SITE_MISSING\nnorth: W_EXAMPLES_CAPPED"
    assert lines[2][1:4] == ["none", "", ""]
    assert "E_QUORUM" in lines[2][-1]
    assert told["final"] is None
    assert set(told["where"]) == {"candidate", "mlflow"}
    assert json.dumps(told)


def test_final_table_has_intervals_and_labels_means(tmp_path):
    results = make(tmp_path, "trial-a")
    columns, lines = final_table(results)
    north, south = results.models[0].figures["north"], results.models[0].figures["south"]
    assert columns == ["figure", "north", "south", "mean by patients"]
    (auroc,) = [line for line in lines if line[0] == "auroc_severe"]
    low, high = north["auroc_severe_low"], north["auroc_severe_high"]
    assert auroc[1] == f"{north['auroc_severe']:.2f} ({low:.2f}–{high:.2f})"
    weights = north["num-examples"], south["num-examples"]
    mean = (north["auroc_severe"] * weights[0] + south["auroc_severe"] * weights[1]) / sum(weights)
    weighted = list(zip(weights, (north, south), strict=True))
    distances = [
        math.hypot(*(weight * (f[f"auroc_severe_{end}"] - f["auroc_severe"]) for weight, f in weighted))
        for end in ("low", "high")
    ]
    low, high = mean - distances[0] / sum(weights), mean + distances[1] / sum(weights)
    assert auroc[3] == f"{mean:.2f} ({low:.2f}–{high:.2f})"
    assert detail(tmp_path, "trial-a")["final"]["release"] == results.release


def test_many_sites_are_summarised_by_number_and_spread(tmp_path):
    results = make_results(30, local=False, leave_one_out=False, fine_tuned=False, pooled=False, histograms=False)
    figures = results.models[0].figures
    counted, missed = sorted(figures)[:20], dict.fromkeys(sorted(figures)[20:26], "E_SITE_MISSING")
    (line,) = round_lines([entry(1, sites=counted, refused=missed)])
    assert line[1] == "20 of 26"
    first = sorted(missed)[:3]
    assert line[-1] == f"6 sites ({', '.join(first)} and 3 more): E_SITE_MISSING"
    columns, lines = final_table(results)
    assert columns == ["figure", "lowest", "median", "highest", "sites", "mean by patients"]
    told = sorted(each["auroc_severe"] for each in figures.values())
    middle = (told[14] + told[15]) / 2
    assert lines[0][:5] == ["auroc_severe", f"{told[0]:.2f}", f"{middle:.2f}", f"{told[-1]:.2f}", "30"]
    for seed in (1, 2):
        write_run(tmp_path, f"trial-{seed}", of=results.study.with_seed(seed), results=results, number=seed)
    rows = compare(tmp_path, ["trial-1", "trial-2"]).lines()
    assert [row[1] for row in rows[:4]] == ["lowest site", "median site", "highest site", "mean by patients"]
    assert rows[0][2:] == [f"{told[0]:.2f}"] * 2
    assert len(rows) <= 4 * 6


def test_masked_run_shows_all_patients_and_means_in_place_of_sites(tmp_path):
    results = make_secure_results(4)
    columns, lines = final_table(results)
    assert columns == ["figure", ALL, MEAN]
    cells = {name: row for name, *row in lines}
    assert all(re.fullmatch(r"0\.\d\d \(0\.\d\d–[01]\.\d\d\)", cell) for cell in cells["auroc_severe"])
    assert cells["brier_severe"][0]
    assert not any(cells["brier_severe"][1:])
    write_run(tmp_path, "masked", of=results.study, history=results.history, results=results)
    (line,) = list_lines(summaries(tmp_path))
    assert line[6] == cells["auroc_severe"][1], "the mean, as of other runs"
    shown = detail(tmp_path, "masked")
    assert shown["together"]["auroc_severe"] != shown["means"]["auroc_severe"]
    json.dumps(shown, allow_nan=False)
    first, severe, _ = masked_lines(results)
    assert "no hospital's own figures" in first
    assert re.search(r"severe: \d+ patients with and \d+ without it, at 4 hospitals", severe)


def test_masked_run_says_why_a_label_has_no_figures(tmp_path):
    results = make_secure_results(3, few="severe")
    assert not [name for name, *_ in final_table(results)[1] if "severe" in name]
    assert "severe: no figure, only 2 of the hospitals" in " ".join(masked_lines(results))
    write_run(tmp_path, "masked", of=results.study, history=results.history, results=results)
    (line,) = list_lines(summaries(tmp_path))
    assert line[6].startswith("validation"), "no figure of test patients"
    assert masked_lines(make_results(2)) == []


def test_final_values_are_named_by_site_mean_and_all_patients():
    masked, plain = final_values(make_secure_results(3)), final_values(make_results(2))
    assert {"mean_auroc_severe", "mean_auroc_severe@female", "together/auroc_severe_low"} <= set(masked)
    assert not [name for name in masked if "positives" in name or name.startswith(("north/", "together/sites"))]
    assert {"north/auroc_severe", "mean_brier_severe"} <= set(plain)
    assert not [name for name in plain if name.startswith("together/") or name.endswith("num-examples")]


def test_final_means_have_the_interval_of_the_table():
    results = make_results(3)
    values = final_values(results)
    mean = mean_interval_of(results, "auroc_severe")
    assert mean
    assert (values["mean_auroc_severe_low"], values["mean_auroc_severe_high"]) == (mean.low, mean.high)
    assert values["mean_auroc_severe"] == pytest.approx(mean.value)
    assert mean.high - mean.low < values["north/auroc_severe_high"] - values["north/auroc_severe_low"]


def test_table_of_rounds_has_the_auroc_that_is_known():
    def with_means(**means: float) -> list[dict[str, Any]]:
        return [entry(1, means={"train_loss": 0.5, **means})]

    assert label_of_rounds(with_means(auroc_severe=0.8, auroc_pcr_positive=0.7)) == "severe"
    assert label_of_rounds([]) == "severe"
    only = with_means(auroc_pcr_positive=0.71)
    assert label_of_rounds(only) == "pcr_positive"
    assert round_lines(only)[0][3] == "0.71"


def test_results_of_another_format_version_are_refused(tmp_path):
    (write_run(tmp_path, "trial-a") / "results.json").write_text('{"format": 99}')
    with pytest.raises(Refusal, match="E_RESULTS"):
        detail(tmp_path, "trial-a")


def test_seeds_of_a_group_form_one_column_with_mean_and_deviation(tmp_path):
    found = [make(tmp_path, f"trial-{seed}", seed=seed, group="seeds", number=seed) for seed in (1, 2, 3)]
    make(tmp_path, "trial-4", seed=1, number=4)
    comparison = compare(tmp_path, ["seeds", "trial-4"])
    assert [len(column.runs) for column in comparison.columns] == [3, 1]
    aurocs = [results.models[0].figures["north"]["auroc_severe"] for results in found]
    seeds, alone = (column.values()["auroc_severe"]["north"] for column in comparison.columns)
    assert (seeds.mean, seeds.deviation) == pytest.approx((fmean(aurocs), stdev(aurocs)))
    assert alone.deviation is None
    assert "±" in str(seeds)
    # The helper draws other patients for each seed.
    assert [warning.code for warning in comparison.warnings] == ["W_RUNS_UNPAIRED"]
    rows = [line[:2] for line in comparison.lines() if line[0] == "auroc_severe"]
    assert rows == [["auroc_severe", "north"], ["auroc_severe", "south"], ["auroc_severe", "mean by patients"]]
    assert json.loads(json.dumps(comparison.to_json()))["columns"][0]["seeds"] == [1, 2, 3]


def test_each_strategy_of_a_group_has_its_own_column(tmp_path):
    for seed in (1, 2):
        make(tmp_path, f"plain-{seed}", seed=seed, group="both", number=seed)
        results = make_results(2, seed=seed)
        prox = Study.model_validate(
            results.study.with_seed(seed).model_dump() | {"strategy": {"name": "FedProx", "options": {}}}
        )
        results = results.model_copy(update={"study": prox})
        write_run(tmp_path, f"prox-{seed}", number=seed + 2, of=prox, group="both", results=results)
    titles = [column.title for column in compare(tmp_path, ["both"]).columns]
    assert titles == ["both\nCenteredClip, 2 seeds", "both\nFedProx, 2 seeds"]


def test_runs_with_different_data_or_settings_give_a_warning(tmp_path):
    make(tmp_path, "trial-a", sites=2)
    other = make(tmp_path, "trial-b", sites=3, number=1, synthetic=False)
    said = [str(warning) for warning in compare(tmp_path, ["trial-a", "trial-b"]).warnings]
    assert len(said) == 2
    assert "the sites" in said[0]
    assert "synthetic" in said[1]
    narrower = other.study.preprocessing.model_copy(update={"margin_mm": 1.0})
    changed = other.study.model_copy(update={"preprocessing": narrower})
    results = other.model_copy(update={"study": changed})
    write_run(tmp_path, "trial-c", number=2, of=changed, results=results)
    (warning,) = compare(tmp_path, ["trial-b", "trial-c"]).warnings
    assert "preprocessing" in str(warning)


def test_incomplete_run_is_left_out_with_a_warning(tmp_path):
    make(tmp_path, "trial-a")
    write_run(tmp_path, "trial-b", number=1, ended="stopped")
    comparison = compare(tmp_path, ["trial-a", "trial-b"])
    assert [column.runs[0].name for column in comparison.columns] == ["trial-a"]
    assert "trial-b" in str(comparison.warnings[0])
    with pytest.raises(Refusal, match="E_RESULTS"):
        compare(tmp_path, ["trial-b"])
    with pytest.raises(Refusal, match="E_RUN_UNKNOWN"):
        compare(tmp_path, ["trial-a", "seeds"])


def test_progress_shows_rounds_sites_figures_and_time_left():
    now = standing(study(rounds=10), [{"handshake": "first"}, entry(1), entry(2, seconds=60.0, sites=["north"])])
    assert (now.done, now.total) == (2, 10)
    assert now.text == (
        "round 2 of 10 · about 6 min left · 1 of 2 sites · loss 0.400 · mean validation AUROC of severe 0.70"
    )
    stopping = study(rounds=10).model_copy(update={"stopping": {"patience_rounds": 3}})
    assert "at most 4 min left" in standing(stopping, [entry(2)]).text
    assert "left" not in standing(study(rounds=2), [entry(2)]).text


def test_duration_is_formatted_in_suitable_units():
    assert [duration(seconds) for seconds in (9.6, 90, 3599, 7320)] == ["10 s", "2 min", "1 h 0 min", "2 h 2 min"]


def test_progress_keeps_the_last_state_while_a_file_is_incomplete(tmp_path):
    progress = Progress(tmp_path)
    assert progress.now() is None
    folder = write_run(tmp_path, "trial-a", history=[entry(1)])
    progress.watch("trial-a")
    assert progress.now().done == 1
    (folder / "history.json").write_text('[{"round":')
    assert progress.now().done == 1
    write_run(tmp_path, "trial-b")
    progress.watch("trial-b")
    assert progress.now().done == 0


def test_last_reported_version_of_each_site_is_known(tmp_path):
    write_run(
        tmp_path, "trial-a", number=0, history=[{"step": "handshake", "versions": {"north": "0.1.0", "west": "0.1.0"}}]
    )
    write_run(tmp_path, "trial-b", number=1, history=[{"step": "handshake", "versions": {"north": "0.1.2"}}, entry(1)])
    damaged = write_run(tmp_path, "trial-c", number=2) / "history.json"
    for content in (b"[", b'{"a": 1}', b"[1]", b"[" * 100_000, bytes(range(256))):
        damaged.write_bytes(content)
        assert last_versions(tmp_path) == {"north": "0.1.2", "west": "0.1.0"}
    assert last_versions(tmp_path / "new") == {}
