"""Tests of a pretrained start: a study that begins from it reads it, and nothing that answers about patients."""

from pathlib import Path

import pytest

from models.encoder_sources import of_release
from models.network import build_network
from models.network_settings import AUXILIARY, NetworkSettings
from models.pretrained_start import LIMITS, USE
from models.refusal import Refusal
from models.release import CARD, load_release, save_release
from pipeline.clinic import model_registry
from pipeline.clinic.settings import Clinic
from tests.helpers.descriptions import description

SETTINGS = NetworkSettings(architecture="resnet10", widen_factor=0.0625, outputs="auxiliary")


@pytest.fixture
def start(tmp_path: Path) -> Path:
    folder = tmp_path / "start"
    save_release(
        folder, build_network(SETTINGS, seed=1), description(network=SETTINGS, intended_use=USE, limits=LIMITS)
    )
    return folder


def test_start_is_read_only_by_those_who_say_so(start: Path) -> None:
    assert load_release(start, pretrained=True).network.head.out_features == len(AUXILIARY)
    with pytest.raises(Refusal) as refused:
        load_release(start)
    assert refused.value.code == "E_NO_MODEL"


def test_card_says_that_it_answers_nothing(start: Path) -> None:
    text = (start / CARD).read_text()
    assert "gives no answer about a patient" in text
    assert "severe" not in text


def test_start_becomes_no_encoder_and_no_model_of_a_clinic(start: Path, tmp_path: Path) -> None:
    (tmp_path / "clinic").mkdir()
    clinic = Clinic.open(tmp_path / "clinic")
    for use in (
        lambda: of_release(start, tmp_path / "encoder", name="x", licence="y"),
        lambda: model_registry.add(clinic, start, by="test"),
    ):
        with pytest.raises(Refusal) as refused:
            use()
        assert refused.value.code == "E_NO_MODEL"
    assert not any(path.name == load_release(start, pretrained=True).sha256 for path in clinic.models.iterdir())
