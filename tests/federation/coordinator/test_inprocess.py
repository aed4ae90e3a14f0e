"""Whole trainings in this process with the ClientApp code: reproducible weights, also if resumed. Synthetic data."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.client.site_tasks import train_site
from federation.coordinator.inprocess import sites_here
from federation.coordinator.rounds import Model, Training
from federation.protocol.flat_weights import pack
from federation.protocol.half_precision import changes, rounded
from federation.protocol.study_config import Study, WireTable
from federation.strategy.round_report import RoundReport
from models.network import build_network
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS, Hospital
from pipeline.site.folder import Site

ROUNDS = 3


def coarse(at: Hospital) -> Hospital:
    """Return the hospital with a coarse scanner grid, for speed."""
    return replace(at, scanner=replace(at.scanner, grid=Grid((30, 48, 48), (9.6, 7.8, 7.8))))


def study(strategy: str = "FedAvg", *, seed: int = 1, **options: float) -> Study:
    table = {"name": "trial", "rounds": ROUNDS, "local_epochs": 1, "seed": seed, "sites": 2, "quorum": 2}
    tables = {
        "study": {**table, "synthetic": True},
        "strategy": {"name": strategy, "options": options},
        "network": {"architecture": "resnet10", "widen_factor": 0.0625},
        "preprocessing": {"method": 1, "shape": (16, 16, 16), "working_spacing_mm": 8.0},
    }
    return Study.model_validate(tables)


def in_half(what: Study) -> Study:
    """Return the study with half precision for transfer."""
    return what.model_copy(update={"wire": WireTable(precision="float16")})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two sites with cohorts. Tests must not change them."""
    root = tmp_path_factory.mktemp("sites")
    for at in HOSPITALS[:2]:
        site = synthetic_site(root / at.name, at.name, seed=1, min_patients=2, tables="[training]\nthreads = 1")
        write_cohort(site, coarse(at), patients=16, seed=1, settings=study().preprocessing, anatomy="template")
    return [root / at.name for at in HOSPITALS[:2]]


class Killed(BaseException):
    """Simulates the end of the server process."""


def train(what: Study, folders: list[Path], out: Path, *, dies_after: int | None = None) -> Training:
    """Train from the last checkpoint in `out`, if one exists."""

    def on_round(report: RoundReport, entry: Mapping[str, Any], saved: Path) -> None:
        if report.round == dies_after:
            raise Killed

    training = Training(what, out, "run", on_round)
    training.execute(sites_here(what, folders))
    return training


def bits(model: Model) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in {**model.arrays, **model.buffers}.items()}


@pytest.mark.slow
def test_runs_with_the_same_seed_give_bit_identical_weights(folders: list[Path], tmp_path: Path) -> None:
    first, again = (bits(train(study(), folders, tmp_path / name).model) for name in ("first", "again"))
    assert first == again
    untrained = bits(Model(*pack(build_network(study().network, seed=1))))
    assert all(first[name] != untrained[name] for name in first)


@pytest.mark.slow
def test_different_seeds_give_different_weights(folders: list[Path], tmp_path: Path) -> None:
    one, other = (train(study(seed=seed), folders, tmp_path / str(seed)).model for seed in (1, 2))
    assert bits(one)["weights"] != bits(other)["weights"]


@pytest.mark.slow
def test_order_of_the_sites_does_not_change_the_weights(folders: list[Path], tmp_path: Path) -> None:
    one = train(study(), folders, tmp_path / "one").model
    other = train(study(), folders[::-1], tmp_path / "other").model
    assert bits(one) == bits(other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("FedProx", {"proximal_mu": 0.1}),
        ("FedAvgM", {"server_momentum": 0.9}),
        ("FedAdam", {"eta": 0.01, "tau": 0.001}),
    ],
)
def test_resumed_run_equals_an_uninterrupted_run(
    folders: list[Path], tmp_path: Path, strategy: str, options: dict[str, float]
) -> None:
    """The run is killed after round 2 of 3. The checkpoint must include the state of the server optimiser."""
    what = in_half(study(strategy, **options)) if strategy == "FedAvgM" else study(strategy, **options)
    undisturbed = train(what, folders, tmp_path / "whole")
    with pytest.raises(Killed):
        train(what, folders, tmp_path / "cut", dies_after=2)
    resumed = train(what, folders, tmp_path / "cut")
    assert bits(resumed.model) == bits(undisturbed.model)
    assert [entry["round"] for entry in resumed.history] == [1, 2, 3]
    for name, array in undisturbed.state.memory.items():
        np.testing.assert_array_equal(resumed.state.memory[name], array)
    assert bool(undisturbed.state.memory) == (strategy != "FedProx")


def test_round_is_the_weighted_mean_of_the_site_weights(folders: list[Path], tmp_path: Path) -> None:
    what = study()
    what = what.model_copy(update={"study": what.study.model_copy(update={"rounds": 1})})
    arrays, buffers = pack(build_network(what.network, seed=1))
    done = [train_site(Site.open(folder), what, arrays, buffers, round_number=1) for folder in folders]
    mean = sum(each.examples * each.arrays["weights"].astype(np.float64) for each in done)
    trained = train(what, folders, tmp_path / "one")
    np.testing.assert_allclose(
        trained.model.arrays["weights"], mean / sum(each.examples for each in done), rtol=1e-5, atol=1e-6
    )


def test_half_precision_round_is_the_weighted_mean_of_rounded_changes(folders: list[Path], tmp_path: Path) -> None:
    """Rounded changes to the rounded weights are averaged and added to the unrounded weights."""
    what = in_half(study())
    what = what.model_copy(update={"study": what.study.model_copy(update={"rounds": 1})})
    arrays, buffers = pack(build_network(what.network, seed=1))
    sent = rounded(arrays, what.wire.precision)
    done = [train_site(Site.open(folder), what, sent, buffers, round_number=1) for folder in folders]
    (parts,) = zip(*(changes(each.arrays, sent).values() for each in done), strict=True)
    mean = sum(each.examples * part.astype(np.float64) for each, part in zip(done, parts, strict=True))
    trained = train(what, folders, tmp_path / "half")
    held = arrays["weights"] + mean / sum(each.examples for each in done)
    np.testing.assert_allclose(trained.state.arrays["weights"], held, rtol=1e-6, atol=1e-8)
    judged = trained.model.arrays["weights"]
    assert judged.dtype == np.float32
    assert np.array_equal(judged, trained.state.arrays["weights"].astype(np.float16)), "as evaluated by sites"
    assert not np.array_equal(judged, trained.state.arrays["weights"]), "the checkpoint has unrounded weights"
    for direction in ("bytes_down", "bytes_up"):
        assert trained.history[0][direction] < 0.6 * len(folders) * arrays["weights"].nbytes


def test_site_that_cannot_take_part_replies_with_a_code(folders: list[Path], tmp_path: Path) -> None:
    """The site.toml of the site requires more patients than the site has."""
    few = tmp_path / "few"
    site = synthetic_site(few, "few", seed=1, min_patients=50)
    write_cohort(site, coarse(HOSPITALS[0]), patients=2, seed=1, settings=study().preprocessing, anatomy="template")
    training = train(study(), [*folders, few], tmp_path / "run")
    assert training.history[-1]["refused"] == {"few": "E_TOO_FEW_PATIENTS"}
    assert training.history[-1]["sites"] == ["north", "south"]
