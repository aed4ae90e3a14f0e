"""Shortcut audit at a site: label or scanner information in tags, outside the lungs and in features, versus chance."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from models.network import SeverityNetwork, build_network
from models.network_settings import NetworkSettings
from pipeline.cohort.dataset import Example, Examples
from pipeline.cohort.store import Cohort
from pipeline.evaluation.shortcuts import (
    assigned_shares,
    blank_lungs,
    embed,
    lung_hull,
    moments,
    outside_auroc,
    scanner_accuracy,
    shortcut_figures,
    tags_auroc,
)
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.phantom.marks import Shortcut
from pipeline.preprocessing.measures import Measures
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.training.train import predict, train
from pipeline.training.train_settings import Schedule, TrainSettings

SHAPE = (16, 20, 20)
SEVERE = 1  # column of the label
SMALL = NetworkSettings(architecture="resnet10", widen_factor=0.125)
MEASURES = Measures(
    slice_mm=5.0,
    pixel_mm=0.8,
    thickness_mm=5.0,
    slices=60,
    lungs_ml=4000,
    is_cut=False,
    air_hu=-1000,
    aerated_hu=-900,
    spine_behind_mm=40,
    windpipe_above_mm2=200,
    heart_left=0.1,
    position="HFS",
    manufacturer="SIEMENS",
    kernel="B30F",
    sharpness="soft",
)
OTHER = replace(MEASURES, manufacturer="GE", kernel="LUNG", sharpness="sharp")


def synthetic_scan(rng: Generator, *, lesion: bool, mark: bool) -> NDArray[np.float16]:
    """Two lungs in soft tissue, with an optional lesion in one lung and an optional mark in a corner outside both."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    lungs = np.zeros(SHAPE, dtype=bool)
    for side in (-1, 1):
        lungs |= (z / 0.9) ** 2 + (y / 0.85) ** 2 + ((x - 0.48 * side) / 0.4) ** 2 < 1
    window = np.where(lungs, -0.85, 0.73) + rng.normal(0, 0.03, SHAPE)
    if lesion:
        window[4:12, 6:14, 3:8] = 0.4
    if mark:
        window[:, :3, -3:] = -1
    return np.stack([window, lungs]).astype(np.float16)


def site(folder: Path, *, patients: int = 60, marked: bool, seed: int = 0) -> Examples:
    """Lesions correlate with severity. With `marked`, the mark and the tags of a second scanner do too."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    made = []
    for number in range(patients):
        severe = number % 2 == 0
        mark = rng.random() < (0.95 if severe else 0.05) if marked else False
        scan = synthetic_scan(rng, lesion=rng.random() < (0.8 if severe else 0.2), mark=mark)
        np.save(folder / f"{number}.npy", scan)
        measures = OTHER if mark else MEASURES
        made.append(Example(folder / f"{number}.npy", 60.0, "F", pcr_positive=True, severe=severe, measures=measures))
    return Examples(made)


def trained(examples: Examples) -> SeverityNetwork:
    network = build_network(SMALL, seed=1)
    train(network, examples, TrainSettings(augment=False), Schedule(0, 6, 6), seed=1)
    return network


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> tuple[SeverityNetwork, Examples]:
    """A network trained at a site with the mark, and other patients of that site."""
    folder = tmp_path_factory.mktemp("marked")
    return trained(site(folder / "train", marked=True)), site(folder / "others", marked=True, seed=1)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[SeverityNetwork, Examples]:
    folder = tmp_path_factory.mktemp("clean")
    return trained(site(folder / "train", marked=False)), site(folder / "others", marked=False, seed=1)


# --- blanked lungs ----------------------------------------------------------------------------------------


def test_model_trained_on_the_mark_predicts_severity_without_lungs(marked: tuple[SeverityNetwork, Examples]) -> None:
    found = outside_auroc(*marked)
    assert found.low > 0.7
    assert found.patients == 60


def test_model_trained_on_the_lungs_is_at_chance_without_lungs(clean: tuple[SeverityNetwork, Examples]) -> None:
    network, others = clean
    severe = others.targets[:, SEVERE] == 1
    logits = predict(network, others)[:, SEVERE]
    assert np.median(logits[severe]) > np.median(logits[~severe])  # the network has learnt
    found = outside_auroc(network, others)
    assert found.low < 0.5 < found.high


def test_blanking_hides_only_the_lungs_the_mask_and_the_common_level() -> None:
    rng = np.random.default_rng(0)
    scan = synthetic_scan(rng, lesion=False, mark=False).astype(np.float32)
    typical = synthetic_scan(rng, lesion=True, mark=False).astype(np.float32)
    hidden = lung_hull(scan[1])
    assert hidden[scan[1] > 0].all()
    assert not hidden[:, 0, 0].any()
    ill = scan.copy()
    ill[0][hidden] = 0.2
    ill[0][~hidden] -= 0.1  # as if dense lungs had shifted the intensity of the whole scan
    blanked = blank_lungs(scan, typical)
    np.testing.assert_allclose(blank_lungs(ill, typical), blanked, atol=1e-5)
    np.testing.assert_array_equal(blanked[1], typical[1])
    np.testing.assert_array_equal(blanked[0][hidden], typical[0][hidden])
    with_mark = scan.copy()
    with_mark[0, :, :3, -3:] = -1
    assert np.abs(blank_lungs(with_mark, typical) - blanked).max() > 1


def test_hull_covers_lung_parts_missing_in_the_mask() -> None:
    lungs = synthetic_scan(np.random.default_rng(0), lesion=False, mark=False)[1]
    bitten = lungs.copy()
    bitten[5:11, 7:13, 16:] = 0  # consolidation at the pleura, segmented as chest wall
    assert bitten.sum() < lungs.sum()
    assert lung_hull(bitten)[lungs > 0].all()


def test_planted_frame_is_visible_in_the_tensor_outside_the_hull(tmp_path: Path) -> None:
    at = replace(HOSPITALS[0], scanner=replace(HOSPITALS[0].scanner, grid=Grid((36, 56, 56), (8.0, 6.6, 6.6))))
    settings = Preprocessing(method=1, shape=(20, 28, 28), working_spacing_mm=8)
    scans = {}
    for name, share in (("without", 0.0), ("with", 1.0)):
        here = synthetic_site(tmp_path / name, "north", seed=1)
        plant = Shortcut(of_severe=share, of_others=share, kernel="B70f")
        write_cohort(here, at, patients=2, seed=1, settings=settings, acquisition=plant, anatomy="template")
        with Cohort.read(here) as cohort:
            examples = cohort.examples("train", "validation", "test")
        assert {e.measures.kernel for e in examples if e.measures} == {"B70F" if share else "B30F"}
        scans[name] = [np.load(e.tensor).astype(np.float32) for e in examples]
    for without, with_frame in zip(scans["without"], scans["with"], strict=True):
        hidden = lung_hull(without[1])
        difference = np.abs(with_frame[0] - without[0])
        assert difference[~hidden].max() > 0.25
        assert difference[without[1] > 0.99].mean() < 0.05  # new noise in each scan


# --- tags -------------------------------------------------------------------------------------------------


def tagged(labels: NDArray[np.bool_], measures: list[Measures]) -> Examples:
    return Examples([Example(Path(), 60.0, "F", True, bool(s), m) for s, m in zip(labels, measures, strict=True)])


def random_measures(rng: Generator) -> Measures:
    return replace(
        OTHER if rng.random() < 0.4 else MEASURES,
        thickness_mm=None if rng.random() < 0.2 else float(rng.choice([1.0, 3.0, 5.0])),
        slices=int(rng.integers(50, 80)),
    )


def test_tags_correlated_with_the_label_predict_it() -> None:
    labels = np.arange(60) % 3 == 0
    rng = np.random.default_rng(0)
    measures = [OTHER if rng.random() < (0.9 if label else 0.1) else MEASURES for label in labels]
    found = tags_auroc(tagged(labels, measures), SEVERE)
    assert 0.7 < found.low < found.value < found.high <= 1
    assert found == tags_auroc(tagged(labels, measures), SEVERE)


@pytest.mark.slow
def test_uncorrelated_tags_are_at_chance() -> None:
    """With correct coverage, one interval in 40 lies above chance. Intervals from folds alone give twice that rate."""
    above = below = 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        found = tags_auroc(tagged(rng.random(60) < 0.35, [random_measures(rng) for _ in range(60)]), SEVERE)
        above += found.low > 0.5
        below += found.high < 0.5
    assert above <= 5
    assert below <= 8


def test_no_tag_figure_if_tags_are_constant_or_a_class_is_too_small() -> None:
    labels = np.arange(40) % 2 == 0
    assert math.isnan(tags_auroc(tagged(labels, [MEASURES] * 40), SEVERE).value)
    few = np.arange(40) < 9
    assert math.isnan(tags_auroc(tagged(few, [OTHER] * 20 + [MEASURES] * 20), SEVERE).value)


# --- features ---------------------------------------------------------------------------------------------


def test_features_are_the_input_of_the_network_head(clean: tuple[SeverityNetwork, Examples]) -> None:
    network, others = clean
    features = embed(network, others)
    with torch.inference_mode():
        joined = torch.cat([torch.from_numpy(features), network.tabular(torch.from_numpy(others.tabular))], dim=1)
        logits = network.head(joined).numpy()
    np.testing.assert_allclose(logits, predict(network, others), atol=0.02)  # bfloat16 if the processor supports it
    mean, variance, patients = moments(features)
    np.testing.assert_allclose(mean, features.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(variance, features.var(axis=0, ddof=1), rtol=1e-4, atol=1e-6)
    assert patients == len(others)


def test_patients_are_assigned_to_the_site_with_the_largest_discriminant() -> None:
    discriminants = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0.5], [9, 9, 9]], dtype=np.float32).ravel()
    embeddings = np.array([[1, 0], [0, 1], [0, 0], [0, 2]], dtype=np.float32)
    assert assigned_shares(embeddings, discriminants, 3) == [0.25, 0.5, 0.25]


def test_scanners_are_distinguished_by_features_given_enough_patients() -> None:
    rng = np.random.default_rng(0)
    second = np.arange(60) % 3 == 0
    patients = tagged(np.zeros(60, dtype=bool), [OTHER if s else MEASURES for s in second])
    features = rng.normal(size=(60, 8)).astype(np.float32)
    blind = scanner_accuracy(features, patients, min_patients=10)
    assert blind is not None
    assert blind.chance == 0.5
    assert 0.25 < blind.value < 0.75
    features[second, 3] += 6
    seeing = scanner_accuracy(features, patients, min_patients=10)
    assert seeing is not None
    assert seeing.value > 0.95
    assert scanner_accuracy(features, patients, min_patients=21) is None  # the second has 20


# --- figures sent -----------------------------------------------------------------------------------------


def test_site_sends_finite_figures_over_enough_patients(marked: tuple[SeverityNetwork, Examples]) -> None:
    network, others = marked
    figures = shortcut_figures(network, {"train": others, "test": others}, min_patients=20)
    named = ("auroc_severe_tags", "auroc_severe_outside")  # all are PCR-positive: no figure for that label
    ends = {f"{name}{end}" for name in named for end in ("", "_low", "_high")}
    assert set(figures) == ends | {"scanner_from_embedding", "scanner_chance"}
    assert all(0 <= value <= 1 for value in figures.values())
    assert figures["auroc_severe_tags_low"] > 0.7
    assert shortcut_figures(network, {"test": others}, min_patients=61) == {}


@pytest.mark.parametrize(
    ("broken", "left"), [("head", {"scanner_from_embedding", "scanner_chance"}), ("backbone", set())]
)
def test_diverged_model_leaves_out_the_figures_of_what_is_not_finite(
    tmp_path: Path, broken: str, left: set[str]
) -> None:
    network, patients = build_network(SMALL, seed=1), site(tmp_path / "site", patients=40, marked=True)
    with torch.no_grad():
        next(network.get_submodule(broken).parameters()).fill_(math.nan)
    figures = shortcut_figures(network, {"train": patients, "test": patients}, min_patients=10)
    assert set(figures) == {f"auroc_severe_tags{end}" for end in ("", "_low", "_high")} | left


def test_split_with_a_small_class_is_left_out_of_the_audit(marked: tuple[SeverityNetwork, Examples]) -> None:
    """Otherwise a metric of two splits, next to one of the large split, would reveal the small split's classes."""
    network, others = marked
    severe = [example for example in others.examples if example.severe]
    small = Examples([*severe[:9], *(example for example in others.examples if not example.severe)])
    splits = {"train": others, "validation": others, "test": others}
    without = shortcut_figures(network, splits | {"test": Examples([])}, min_patients=10)
    found = shortcut_figures(network, splits | {"test": small}, min_patients=10)
    assert {name: value for name, value in found.items() if name.startswith("auroc")} == {
        name: value for name, value in without.items() if name.startswith("auroc")
    }
    few = shortcut_figures(network, {"train": small, "validation": small, "test": small}, min_patients=10)
    assert not [name for name in few if name.startswith("auroc")]
