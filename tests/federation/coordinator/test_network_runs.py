"""Whole runs with other networks, in one process: rounds, pooled and fine-tuned models, release, scoring's loader."""

from pathlib import Path

import pytest

from federation.comparison.signed_release import release_run
from federation.coordinator.rehearsal import rehearse
from federation.protocol.study_config import Study
from federation.runs.results import read_results
from models.own_packages import installed
from models.refusal import Refusal
from models.release import load_release
from tests.federation.coordinator.conftest import SMALL
from tests.helpers.own_package import PARTS, write_package

pytestmark = pytest.mark.slow


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
    [
        pytest.param({"architecture": "densenet121", "pooling": "attention"}, marks=pytest.mark.further),
        pytest.param({"architecture": "seresnet50", "pooling": "gated"}, marks=pytest.mark.further),
        pytest.param({"architecture": "efficientnet_b0_slices"}, marks=pytest.mark.further),
        {"architecture": "convnext"},
    ],
    ids=lambda network: network["architecture"],
)
def test_run_with_another_network_ends_in_a_release(
    two_hospitals: list[Path], tmp_path: Path, network: dict[str, object]
) -> None:
    run = rehearse(study({**network, "widen_factor": 0.125}), tmp_path / "server", two_hospitals)
    results = read_results(run)
    assert {"federated", "pooled", "north fine-tuned"} <= {model.name for model in results.models}
    assert results.audit is not None
    released = release_run(run.name, tmp_path / "server", lambda text: None, reason="a test")
    assert load_release(released.folder, [released.public_key]).network.features >= 40


def test_run_with_the_network_of_a_package(
    two_hospitals: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = write_package(tmp_path / "packages", "rehearsed-nets")
    network = {"architecture": "rehearsed-nets:tiny", "code": installed("rehearsed-nets", [packages]).sha256}
    with pytest.raises(Refusal, match="E_NETWORK_PACKAGE"):
        rehearse(study(network), tmp_path / "server", two_hospitals)  # it is not installed here
    monkeypatch.syspath_prepend(str(packages))
    run = rehearse(study(network), tmp_path / "server", two_hospitals)
    results = read_results(run)
    assert {"federated", "pooled", "south fine-tuned"} <= {model.name for model in results.models}
    released = release_run(run.name, tmp_path / "server", lambda text: None, reason="a test")
    assert "rehearsed-nets:tiny" in (released.folder / "card.md").read_text()
    with pytest.raises(Refusal, match="E_NETWORK_UNLIKE"):
        other = {**network, "code": "0" * 64}
        rehearse(study(other), tmp_path / "server", two_hospitals)


def test_run_with_loss_transform_and_strategy_of_a_package(
    two_hospitals: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = write_package(tmp_path / "packages", "rehearsed-parts", networks=(), parts=PARTS)
    code = installed("rehearsed-parts", [packages]).sha256
    monkeypatch.syspath_prepend(str(packages))
    content = study({"architecture": "resnet10", "widen_factor": 0.0625}).model_dump()
    content["training"] |= {
        "loss": "rehearsed-parts:focal",
        "loss_code": code,
        "loss_settings": {"gamma": 1.0},
        "transform": "rehearsed-parts:dimmed",
        "transform_code": code,
    }
    content["strategy"] = {"name": "rehearsed-parts:half_way", "code": code, "options": {"rate": 0.9}}
    named = Study.model_validate(content)
    run = rehearse(named, tmp_path / "server", two_hospitals)
    results = read_results(run)
    assert results.study == named.with_seed(named.study.seed)
    assert [entry["lost"] for entry in results.history if "round" in entry] == [False, False]
    assert {"federated", "pooled", "south fine-tuned"} <= {model.name for model in results.models}
    released = release_run(run.name, tmp_path / "server", lambda text: None, reason="a test")
    card = (released.folder / "card.md").read_text()
    for part in ("rehearsed-parts:half_way, code " + code, "rehearsed-parts:focal", "rehearsed-parts:dimmed", "gamma"):
        assert part in card
    content["strategy"]["options"] = {"unknown": 1.0}
    with pytest.raises(Refusal, match="E_PACKAGE_PART"):
        rehearse(Study.model_validate(content), tmp_path / "server", two_hospitals)
    content["strategy"] = {"name": "rehearsed-parts:other", "code": code}
    with pytest.raises(Refusal, match="E_NETWORK_PACKAGE"):
        rehearse(Study.model_validate(content), tmp_path / "server", two_hospitals)
