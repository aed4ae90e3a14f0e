"""Whole runs with other networks, in one process: rounds, pooled and fine-tuned models, release, scoring's loader."""

from pathlib import Path

import pytest

from federation.comparison.signed_release import release_run
from federation.coordinator.rehearsal import rehearse
from federation.protocol.study_config import Study
from federation.runs.results import read_results
from models.own_networks import installed
from models.refusal import Refusal
from models.release import load_release
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.preprocessing.preprocess import Preprocessing
from tests.helpers.own_package import write_package

pytestmark = pytest.mark.slow
SMALL = Preprocessing(method=1, shape=(16, 16, 16))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place, made = tmp_path_factory.mktemp("networks"), []
    for hospital in HOSPITALS[:2]:
        site = synthetic_site(place / hospital.name, hospital.name, seed=1, min_patients=3)
        write_cohort(site, hospital, patients=40, seed=1, settings=SMALL, anatomy="template")
        made.append(site.folder)
    return made


def study(network: dict[str, object]) -> Study:
    return Study.model_validate(
        {
            "study": {"name": "networks", "rounds": 2, "local_steps": 3, "sites": 2, "quorum": 2, "synthetic": True},
            "network": network,
            "preprocessing": SMALL.model_dump(),
            "evaluation": {"fine_tune": True, "pooled": True},
        }
    )


@pytest.mark.parametrize(
    "network",
    [{"architecture": "densenet121", "pooling": "attention"}, {"architecture": "seresnet50", "pooling": "gated"}],
    ids=lambda network: network["architecture"],
)
def test_run_with_another_network_ends_in_a_release(
    folders: list[Path], tmp_path: Path, network: dict[str, object]
) -> None:
    run = rehearse(study({**network, "widen_factor": 0.125}), tmp_path / "server", folders)
    results = read_results(run)
    assert {"federated", "pooled", "north fine-tuned"} <= {model.name for model in results.models}
    assert results.audit is not None
    released = release_run(run.name, tmp_path / "server", lambda text: None, reason="a test")
    assert load_release(released.folder, [released.public_key]).network.features > 100


def test_run_with_the_network_of_a_package(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = write_package(tmp_path / "packages", "rehearsed-nets")
    network = {"architecture": "rehearsed-nets:tiny", "code": installed("rehearsed-nets", [packages]).sha256}
    with pytest.raises(Refusal, match="E_NETWORK_PACKAGE"):
        rehearse(study(network), tmp_path / "server", folders)  # it is not installed here
    monkeypatch.syspath_prepend(str(packages))
    run = rehearse(study(network), tmp_path / "server", folders)
    results = read_results(run)
    assert {"federated", "pooled", "south fine-tuned"} <= {model.name for model in results.models}
    released = release_run(run.name, tmp_path / "server", lambda text: None, reason="a test")
    assert "rehearsed-nets:tiny" in (released.folder / "card.md").read_text()
    with pytest.raises(Refusal, match="E_NETWORK_UNLIKE"):
        other = {**network, "code": "0" * 64}
        rehearse(study(other), tmp_path / "server", folders)
