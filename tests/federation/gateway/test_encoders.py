"""A study with a frozen encoder behind the real gateway, played by a server that may send anything."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message

from federation.approval.encoders import EncoderApprovals
from federation.approval.studies import StudyApprovals, study_digest
from federation.client.client_app import app as own_app
from federation.node.site_encoding import encode_site
from federation.protocol.flat_weights import pack
from federation.protocol.reply_validation import decode
from federation.protocol.study_config import Study
from models.encoder_layers import ResNetLayers, divide
from models.encoders import Encoder, allow
from models.network import build_network
from tests.attacks.cohort import PREPROCESSING
from tests.attacks.head_updates import UNVARIED
from tests.attacks.rig import rig
from tests.federation.gateway.messages import record_of
from tests.helpers.encoders import FEATURES, Silent, head_on, small_encoder, tuned_on

pytestmark = pytest.mark.slow


def study(encoder: Encoder, /, **network: object) -> Study:
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


def test_tuned_stages_travel_and_frozen_layers_do_not(encoder: Encoder, tmp_path: Path) -> None:
    trial = study(encoder, **tuned_on(encoder, 1))
    with rig(settings=UNVARIED) as attacked:
        site = attacked.hospital.site
        EncoderApprovals(site).approve(tmp_path / "encoder", by="the hospital")
        attacked.talk_into(trial)
        done = encode_site(site, Silent())
        assert done[trial.network.encoded] == done[encoder.card.sha256] > 0
        allow(encoder)
        model = build_network(trial.network, seed=trial.study.seed)
        drawn = copy.deepcopy(model)
        with torch.no_grad():
            drawn.backbone.layer4[0].conv1.weight.copy_(torch.randn_like(drawn.backbone.layer4[0].conv1.weight))
        assert attacked.ask("train", trial, drawn).code == "E_MODEL_FIRST", "not the encoder's weights"
        for number in (1, 2):
            before, model = model, attacked.must("train", trial, model, round_number=number).network(trial)
            moved = [not torch.equal(*pair) for pair in zip(before.parameters(), model.parameters(), strict=True)]
            assert sum(moved) > 6, "stages and head are trained"
        weights, buffers = (sum(array.size for array in arrays.values()) for arrays in pack(model))
        held = sum(weight.numel() for weight in encoder.layers.layer4.parameters())
        others = sum(weight.numel() for part in (model.head, model.tabular) for weight in part.parameters())
        assert weights == held + others
        assert buffers == sum(buffer.numel() for buffer in encoder.layers.layer4.buffers())
        frozen, _ = divide(encoder.layers, 1)
        extra = torch.cat([weight.flatten() for part in frozen.values() for weight in part.parameters()]).numpy()
        for number, (change, code) in enumerate(
            [
                (lambda arrays, _: arrays.update(weights=np.concatenate([arrays["weights"], extra])), "E_REPLY_SHAPE"),
                (lambda arrays, _: arrays.update(weights=np.concatenate([extra, arrays["weights"]])), "E_REPLY_SHAPE"),
                (lambda arrays, _: arrays.update(frozen=extra), "E_REPLY_KEYS"),
                (lambda _, buffers: buffers.update(frozen=extra), "E_REPLY_KEYS"),
            ],
            start=3,
        ):
            attacked.app = Changed(change)
            assert attacked.ask("train", trial, model, round_number=number).code == code


class Changed:
    """The app of this release, whose replies somebody changes."""

    def __init__(self, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
        self._change = change

    def __call__(self, message: Message, context: Context) -> Message:
        reply = own_app(message, context)
        records = {name: decode(reply.content.array_records[name]) for name in ("arrays", "buffers")}
        self._change(*records.values())
        for name, arrays in records.items():
            reply.content[name] = record_of(arrays)
        return reply


def test_maps_are_renewed_when_the_setting_changes(encoder: Encoder, tmp_path: Path) -> None:
    one, two = (study(encoder, **tuned_on(encoder, stages)) for stages in (1, 2))
    with rig(settings=UNVARIED) as attacked:
        site = attacked.hospital.site
        EncoderApprovals(site).approve(tmp_path / "encoder", by="the hospital")
        attacked.talk_into(one)
        scans = encode_site(site, Silent())[one.network.encoded]
        attacked.talk_into(two)
        allow(encoder)
        model = build_network(two.network, seed=two.study.seed)
        assert attacked.ask("train", two, model).code == "E_NOT_ENCODED"
        expected = {encoder.card.sha256: 0, one.network.encoded: 0, two.network.encoded: scans}
        assert encode_site(site, Silent()) == expected and scans > 0
        assert attacked.ask("train", two, model).code == ""
        other = study(encoder, **{**tuned_on(encoder, 3), "encoder_layers": {"architecture": "resnet18"}})
        StudyApprovals(site).approve(other.model_dump_json(), by="the hospital")
        assert other.network.encoded not in encode_site(site, Silent()), "the encoder has other layers"
        StudyApprovals(site).revoke(study_digest(one.model_dump_json()), by="the hospital")
        encode_site(site, Silent())
        kept = {folder.name for folder in (site.cohort_folder / "encoded").iterdir()}
        assert kept == {encoder.card.sha256, two.network.encoded}
        EncoderApprovals(site).revoke(encoder.card.sha256, by="the hospital")
        assert encode_site(site, Silent()) == {}
        assert not (site.cohort_folder / "encoded" / two.network.encoded).exists()
        EncoderApprovals(site).approve(tmp_path / "encoder", by="the hospital")
        other = {**tuned_on(encoder, 1), "encoder_layers": ResNetLayers(depth=10, widen_factor=1 / 16).model_dump()}
        attacked.talk_into(study(encoder, **other))
        assert attacked.ask("query.handshake", study(encoder, **other)).code == "E_ENCODER_REFUSED"


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
