"""Baselines: what they cannot train as the study says is refused."""

from pathlib import Path

import pytest

from federation.coordinator.baselines import train_baseline, train_together
from federation.protocol.study_config import Study
from models.refusal import Refusal
from pipeline.site.folder import Site
from tests.federation.coordinator.conftest import SMALL
from tests.helpers.encoders import small_encoder, tuned_on

TABLE = {"name": "baseline", "rounds": 2, "local_steps": 1, "sites": 2, "quorum": 2, "synthetic": True}
NETWORK = {"architecture": "resnet10", "widen_factor": 0.0625}


def study(**tables: object) -> Study:
    return Study.model_validate({"study": TABLE, "network": NETWORK, "preprocessing": SMALL.model_dump(), **tables})


def refused(asked: Study, out: Path) -> str:
    with pytest.raises(Refusal) as caught:
        train_baseline(asked, [], out)
    assert not out.exists()
    return f"{caught.value.code} {caught.value.says}"


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        ({"study": {**TABLE, "begin_from": "a" * 64}}, "begin_from"),
        (
            {
                "study": {**TABLE, "local_steps": 0, "local_epochs": 1},
                "network": {**NETWORK, "norm": "group"},
                "privacy": {"noise_multiplier": 1.0, "sample_rate": 0.1},
            },
            "[privacy]",
        ),
        ({"network": {**NETWORK, "outputs": "auxiliary"}, "training": {"learning_rate": 0.01}}, "outputs"),
    ],
    ids=["release", "privacy", "pretraining"],
)
def test_study_that_asks_for_more_than_training_from_the_seed_is_refused(
    tables: dict[str, object], named: str, tmp_path: Path
) -> None:
    says = refused(study(**tables), tmp_path / "out")
    assert says.startswith("E_BASELINE_UNLIKE") and named in says


def test_tuned_stages_do_not_begin_with_random_weights(two_hospitals: list[Path], tmp_path: Path) -> None:
    made = small_encoder(tmp_path / "encoder", SMALL)
    asked = study(network=tuned_on(made, 1), training={"augment": False})
    assert "tuned_stages" in refused(asked, tmp_path / "out")
    with pytest.raises(Refusal, match="E_ENCODER_CLOSED"):
        train_together(asked, [Site.open(folder) for folder in two_hospitals])
