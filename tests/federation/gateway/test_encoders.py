"""A study with a frozen encoder behind the real gateway, played by a server that may send anything."""

import copy
from pathlib import Path

import pytest
import torch

from federation.approval.encoders import EncoderApprovals
from federation.node.site_encoding import encode_site
from federation.protocol.study_config import Study
from models.encoders import Encoder
from models.network import build_network
from tests.attacks.cohort import PREPROCESSING
from tests.attacks.rig import rig
from tests.helpers.encoders import FEATURES, head_on, small_encoder
from tests.pipeline.cohort.test_encoding import silent

pytestmark = pytest.mark.slow
UNVARIED = {"require_augmentation = true": "require_augmentation = false"}  # features of an encoder cannot vary


class Silent:
    """A progress bar that shows nothing."""

    def __call__(self, title: str) -> "Silent":
        return self

    def __enter__(self):
        return silent

    def __exit__(self, *_: object) -> None:
        pass


def study(encoder: Encoder, **network: object) -> Study:
    settings = {"name": "trial", "rounds": 20, "sites": 1, "quorum": 1, "local_epochs": 1}
    tables = {"network": {**head_on(encoder), **network}, "training": {"augment": False}}
    return Study.model_validate(
        {"study": settings, "preprocessing": PREPROCESSING.model_dump(), "evaluation": {}, **tables}
    )


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    return small_encoder(tmp_path / "encoder", PREPROCESSING)


def test_approved_encoder_trains_a_head_within_its_bounds(encoder: Encoder, tmp_path: Path) -> None:
    trial = study(encoder)
    with rig(settings=UNVARIED) as attacked:
        site = attacked.hospital.site
        attacked.talk_into(trial)
        assert attacked.ask("query.handshake", trial).code == "E_ENCODER_REFUSED", "the encoder needs an approval too"
        EncoderApprovals(site).approve(tmp_path / "encoder", by="the hospital")
        model = build_network(trial.network, seed=trial.study.seed)
        assert attacked.ask("train", trial, model).code == "E_NOT_ENCODED"
        assert encode_site(site, Silent())[encoder.card.sha256] > 0
        for number in (1, 2):
            model = attacked.must("train", trial, model, round_number=number).network(trial)
        assert attacked.ask("evaluate.embed", trial, model).code == ""
        hostile = copy.deepcopy(model)
        with torch.no_grad():
            hostile.head.weight[:, :FEATURES] *= 9
        assert attacked.ask("train", trial, hostile, round_number=3).code == "E_MODEL_DRIFT"
        EncoderApprovals(site).revoke(encoder.card.sha256, by="the hospital")
        assert attacked.ask("train", trial, model, round_number=3).code == "E_ENCODER_REFUSED"


def test_site_that_requires_augmentation_takes_no_part(encoder: Encoder, tmp_path: Path) -> None:
    with rig() as attacked:
        EncoderApprovals(attacked.hospital.site).approve(tmp_path / "encoder", by="the hospital")
        encode_site(attacked.hospital.site, Silent())
        attacked.talk_into(study(encoder))
        model = build_network(study(encoder).network, seed=1)
        assert attacked.ask("train", study(encoder), model).code == "E_AUGMENTATION"


def test_other_number_of_features_fails(encoder: Encoder, tmp_path: Path) -> None:
    """A server cannot make the app read beyond the features that the hospital computed."""
    trial = study(encoder, encoder_features=FEATURES + 1)
    with rig(settings=UNVARIED) as attacked:
        site = attacked.hospital.site
        EncoderApprovals(site).approve(tmp_path / "encoder", by="the hospital")
        encode_site(site, Silent())
        attacked.talk_into(trial)
        model = build_network(trial.network, seed=trial.study.seed)
        assert attacked.ask("train", trial, model).code == "E_SITE_FAILED"
