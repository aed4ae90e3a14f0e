"""The experiment on STOIC2021: it runs on a synthetic folder of the same layout, continues, and says what it is."""

import json
import re
import stat
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models.refusal import Refusal
from pipeline.evaluation.discrimination import auroc, auroc_difference
from pipeline.phantom import stoic2021_layout
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.hospitals import HOSPITALS, Hospital
from pipeline.phantom.stoic2021_layout import synthetic_stoic2021

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SITES, PATIENTS, SEEDS = 3, 60, (1, 2)
SMALL = (
    'network.architecture="resnet10"',
    "network.widen_factor=0.0625",
    "study.rounds=2",
    "study.local_epochs=1",
    "preprocessing.method=1",
    "preprocessing.shape=[16, 16, 16]",
    "preprocessing.working_spacing_mm=8.0",
)


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the benchmarks folder on `sys.path`: it is a folder of scripts, not a package."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the published layout, from coarse scanners: small scans suffice for a coarse grid."""
    folder = tmp_path_factory.mktemp("stoic") / "data-set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stoic2021_layout, "HOSPITALS", [_coarse(at) for at in HOSPITALS])
        synthetic_stoic2021(folder, PATIENTS)
    return folder


def _coarse(at: Hospital) -> Hospital:
    grid = at.scanner.grid
    slices, rows, columns = (round(length / 1.5) for length in grid.shape)
    up, back, left = (mm * 1.5 for mm in grid.spacing_mm)
    return replace(at, scanner=replace(at.scanner, grid=Grid((slices, rows, columns), (up, back, left))))


def labels_and_scores(patients: int = 120, seeds: int = 3) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(5)
    labels = (draw.random(patients) < 0.3).astype(float)
    scores = labels + draw.normal(size=(seeds, patients))
    labels[:7] = np.nan
    return labels, scores


def test_area_of_one_seed_is_the_products_with_delongs_interval() -> None:
    from stoic2021_figures import area

    labels, scores = labels_and_scores()
    ours, theirs = area(scores[:1], labels), auroc(scores[0], labels)
    assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high), abs=1e-9)
    assert (ours.patients, ours.positives) == (113, int((labels == 1).sum()))


def test_seeds_that_disagree_widen_the_interval_and_equal_ones_do_not() -> None:
    from stoic2021_figures import area

    labels, scores = labels_and_scores()
    one = area(scores[:1], labels)
    same = area(np.repeat(scores[:1], 3, axis=0), labels)
    assert (same.low, same.high) == pytest.approx((one.low, one.high))
    worse = np.stack([scores[0], scores[0], -scores[0]])
    assert area(worse, labels).high - area(worse, labels).low > same.high - same.low
    assert area(scores, np.zeros(120)).by_seed == (), "one class has no AUROC"


def test_ratio_is_paired_by_patients_and_seeds() -> None:
    from stoic2021_figures import ratio

    labels, scores = labels_and_scores()
    itself = ratio(scores, scores, labels)
    assert (itself.value, itself.low, itself.high) == (1.0, 1.0, 1.0)
    other = scores[:1] + np.random.default_rng(6).normal(scale=0.5, size=(1, 120))
    found, difference = ratio(scores[:1], other, labels), auroc_difference(scores[0], other[0], labels)
    half = (difference.high - difference.low) / 2 / auroc(other[0], labels).value
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.15), "as the product's paired difference"


def test_network_of_the_port_has_the_published_size_and_reads_any_grid() -> None:
    import torch
    from inflated_inception import InflatedInception

    weights = sum(each.numel() for each in InflatedInception(2).parameters())
    assert weights == 12_287_264 + 2 * 1024 + 2, "I3D without its 400 classes, and two outputs"
    assert InflatedInception(2, width=0.125)(torch.zeros(2, 1, 20, 24, 33)).shape == (2, 2)


@pytest.mark.parametrize("slices", [5, 9])
def test_port_keeps_the_last_slices_and_the_middle_of_a_slice(slices: int, tmp_path: Path) -> None:
    import SimpleITK
    from stoic2021_baseline import Recipe, prepare

    hu = np.full((slices, 12, 12), -1100, np.int16)
    hu[:, :2], hu[-1] = 300, -400  # the front is beyond the middle; the uppermost slice is half of the window
    image = SimpleITK.GetImageFromArray(hu)
    image.SetSpacing((2.0, 2.0, 2.0))
    SimpleITK.WriteImage(image, tmp_path / "1.mha")
    found = prepare(tmp_path / "1.mha", Recipe(spacing_mm=2.0, side=8))
    assert found.shape == (8, 8, 8) and found.dtype == np.float16
    assert np.all(found[-1] == 0.5), "the last slice of the file is the last one"
    beyond = max(0, 8 - slices)
    assert np.all(found[beyond:-1] == 0.0)
    assert np.allclose(found[:beyond], 1100 / 1400, atol=1e-3), "0 HU before the first slice"


@pytest.mark.parametrize(("missing", "code"), [("metadata/reference.csv", "E_LAYOUT"), ("", "E_IMPORT_OUT")])
def test_bad_folder_is_refused_before_anything_is_written(
    missing: str, code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import stoic2021

    folder = tmp_path / "data-set"
    synthetic_stoic2021(folder, 1)
    if missing:
        (folder / missing).unlink()
    out = tmp_path / "out" if missing else folder / "out"
    before = sorted(tmp_path.rglob("*"))
    assert stoic2021.main([str(folder), "--out", str(out), "--grid", "default", "--no-baseline"]) == 1
    assert code in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_too_few_sites_are_refused_by_the_products_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import stoic2021

    synthetic_stoic2021(tmp_path / "data-set", 1)
    arguments = [str(tmp_path / "data-set"), "--out", str(tmp_path / "out"), "--sites", "2", "--no-baseline"]
    assert stoic2021.main([*arguments, "--grid", "default"]) == 1
    assert "E_FEW_HOSPITALS" in capsys.readouterr().err


def test_study_is_that_of_study_init(tmp_path: Path) -> None:
    from stoic2021_sites import study_of
    from typer.testing import CliRunner

    from federation.cli.study import app
    from federation.protocol.study_config import Study
    from models.settings import load_settings

    for sites in (3, 9):
        file = tmp_path / f"{sites}.toml"
        assert CliRunner().invoke(app, ["init", str(file), "--sites", str(sites)]).exit_code == 0
        assert study_of(tmp_path, sites, {}) == load_settings(file, Study)
    with pytest.raises(Refusal, match="E_SETTINGS_KEY"):
        study_of(tmp_path, 3, {"study": {"round": 1}})


def test_interrupted_import_begins_again_and_sites_of_another_folder_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stoic2021_sites
    from stoic2021_sites import bring

    from pipeline.preprocessing.preprocess_settings import Preprocessing

    def interrupted(data: Path, out: Path, **_: object) -> None:
        (out / "stoic2021-1").mkdir(parents=True)
        (out / "stoic2021-1" / "site.toml").write_text("[site]\n")
        raise KeyboardInterrupt

    one, other, out = tmp_path / "one", tmp_path / "other", tmp_path / "out"
    for folder in (one, other):
        synthetic_stoic2021(folder, 3)
    one_patient = SimpleNamespace(counts=[], patients=["any"])
    monkeypatch.setattr(stoic2021_sites, "ingest", lambda *_: one_patient)
    how: dict[str, Any] = {"sites": 3, "split": "equal", "settings": Preprocessing(), "say": lambda line: None}
    with monkeypatch.context() as patch:
        patch.setattr(stoic2021_sites, "import_stoic2021", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bring(one, out, **how)
    made = bring(one, out, **how)
    assert made.labels["patients"] == 3 and made.synthetic
    assert made.sites == made.accepted == dict.fromkeys(("stoic2021-1", "stoic2021-2", "stoic2021-3"), 1)
    with pytest.raises(Refusal, match="E_IMPORT_OUT"):
        bring(other, out, **how)


def _contents(folder: Path) -> dict[Path, tuple[int, int]]:
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("network.norm=group", {"norm": "group"}),
        ('network.norm="group"', {"norm": "group"}),
        ("network.widen_factor=0.5", {"widen_factor": 0.5}),
        ("network.norm=true", {"norm": True}),
        ("network.shape=[1, 2]", {"shape": [1, 2]}),
        ("network.options.rate=2", {"options": {"rate": 2}}),
    ],
)
def test_setting_is_a_value_of_toml_or_a_word(text: str, expected: dict[str, Any]) -> None:
    import stoic2021

    chosen = stoic2021.parsed(["data", "--grid", "default", "--no-baseline", "--set", text])
    network = stoic2021.changes(chosen, synthetic=True)["network"]
    assert network == {"architecture": chosen.network, **expected}


@pytest.mark.parametrize(
    "text",
    ["network", "network.norm", "norm=group", "network.=1", ".norm=1", "network.norm=", "network.a=[1", "a.b=x y"],
)
def test_setting_of_another_form_is_a_wrong_argument(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    import stoic2021

    with pytest.raises(SystemExit) as caught:
        stoic2021.main(["data", "--grid", "default", "--no-baseline", "--set", text])
    assert caught.value.code == 2
    assert "is not TABLE.KEY=VALUE, such as" in capsys.readouterr().err


@pytest.mark.slow
def test_whole_experiment_has_all_figures_and_a_second_run_repeats_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import stoic2021
    import stoic2021_models
    from stoic2021_baseline import Recipe
    from stoic2021_models import FEDERATED, POOLED, PORT

    out, before = tmp_path / "out", _contents(data)
    arguments = [str(data), "--out", str(out), "--grid", "default", "--baseline", "--in-process", "--set", *SMALL]
    chosen = stoic2021.parsed(arguments)
    _make_small_sites(out, chosen)
    monkeypatch.setattr(stoic2021_models.os, "cpu_count", lambda: 1)  # threads would wait for each other
    recipe = Recipe(spacing_mm=12.0, side=32, epochs=1, width=0.125)
    assert stoic2021.main([*arguments, "--seeds", *map(str, SEEDS)], recipe) == 0
    printed = capsys.readouterr().out
    (numbers,) = out.glob("models/*/stoic2021.json")
    found: dict[str, Any] = json.loads(numbers.read_bytes())

    alone = [f"stoic2021-{number} alone" for number in range(1, SITES + 1)]
    assert list(found["rows"]) == [FEDERATED, POOLED, *alone, PORT]
    for name, row in found["rows"].items():
        assert row["seeds"] == list(SEEDS)
        for label in ("severe", "pcr_positive"):
            figure = row[label]["auroc"]
            assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
            assert len(figure["by_seed"]) == len(SEEDS) and set(row[label]["auroc_by_site"]) == set(
                found["data"]["sites"]
            )
            # A run calibrates with the patients of three sites, each of them with enough of both classes.
            assert row[label]["calibration"]["ece"] is not None or name == FEDERATED
    assert set(found["ratios"]) == {f"{FEDERATED} / {row}" for row in (POOLED, *alone)}
    for name, ratios in found["ratios"].items():
        for label, each in ratios.items():
            areas = [found["rows"][row][label]["auroc"]["by_seed"] for row in name.split(" / ")]
            assert (each["value"] is not None) == all(map(all, areas)), "an AUROC of 0 has no logarithm"
    assert found["synthetic"] and not found["published_set"]
    assert found["data"]["labels"]["patients"] == sum(found["data"]["accepted"].values()) == PATIENTS

    page = numbers.with_suffix(".md").read_text()
    assert printed.startswith(page)
    for text in ("**Synthetic patients.**", "synthetic patients at 3 sites", "0.815", "Not the published size"):
        assert text in page
    report = (numbers.parent / "report" / "report.html").read_text()
    assert re.search("synthetic", report, re.IGNORECASE)
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert _contents(data) == before, "the data set is as it was"
    assert not list(out.rglob("*.mha")) or all(path.is_symlink() for path in out.rglob("*.mha")), "no scan is copied"

    def never(*_: object, **__: object) -> None:
        raise AssertionError("done before")

    for name in ("rehearse", "train_baseline", "train_baseline_port", "predict"):
        monkeypatch.setattr(stoic2021_models, name, never)
    monkeypatch.setattr("stoic2021_sites.import_stoic2021", never)
    monkeypatch.setattr("stoic2021_sites.ingest", never)
    assert stoic2021.main([*arguments, "--seeds", *map(str, SEEDS)], recipe) == 0
    assert json.loads(numbers.read_bytes())["rows"] == found["rows"]


@pytest.mark.slow
@pytest.mark.further
def test_runs_in_a_simulation_and_goes_on_with_an_interrupted_run(data: Path, tmp_path: Path) -> None:
    import stoic2021
    from stoic2021_models import FEDERATED, POOLED

    from federation.runs.run_folder import read_note, write_note

    out = tmp_path / "out"
    arguments = [str(data), "--out", str(out), "--grid", "default", "--no-baseline", "--seeds", "1", "--set", *SMALL]
    _make_small_sites(out, stoic2021.parsed(arguments))
    assert stoic2021.main(arguments) == 0
    (numbers,) = out.glob("models/*/stoic2021.json")
    first = json.loads(numbers.read_bytes())["rows"]
    assert first[FEDERATED]["severe"]["auroc"]["value"] is not None and POOLED in first

    (run,) = (numbers.parent / "server" / "runs").iterdir()
    write_note(run, read_note(run).model_copy(update={"ended": "stopped"}))
    for file in (numbers.parent / "answers").glob(f"{FEDERATED}-*.npz"):
        file.unlink()
    assert stoic2021.main(arguments) == 0
    again = json.loads(numbers.read_bytes())["rows"]
    assert [each.name for each in (numbers.parent / "server" / "runs").iterdir()] == [run.name], "no second run"
    assert again[FEDERATED]["severe"] == first[FEDERATED]["severe"]


def _make_small_sites(out: Path, chosen: Any) -> None:
    """Import, and let sites of some thirty patients report: their usual minimum is ten patients of a class."""
    import stoic2021
    from stoic2021_sites import bring, sites_folder, study_of

    out.mkdir()
    study = study_of(out, SITES, stoic2021.changes(chosen, synthetic=True))
    folder = sites_folder(out, SITES, "equal", study.preprocessing)
    bring(chosen.data, folder, sites=SITES, split="equal", settings=study.preprocessing, say=lambda line: None)
    for file in folder.glob("*/site.toml"):
        file.write_text(file.read_text().replace("min_patients = 10", "min_patients = 2"))
