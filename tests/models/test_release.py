"""Releases are read back as written, refused if altered, and never unpickled."""

import hashlib
import json
import math
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from models.attacks import Attacks, Control
from models.calibration import Platt
from models.description import Description, Privacy
from models.familiarity import APPEARANCE_SIZE, Familiarity
from models.model_card import card
from models.network import build_network
from models.network_settings import LABELS, NetworkSettings
from models.refusal import Refusal
from models.release import CARD, DESCRIPTION, WEIGHTS, Release, add_attacks, load_release, save_release
from models.signature import new_private_key, public_key, sign

SETTINGS = NetworkSettings(architecture="resnet10", widen_factor=0.125)


def describe(**changes: Any) -> Description:
    facts: dict[str, Any] = {
        "network": SETTINGS,
        "preprocessing": {"shape": [16, 16, 16]},
        "calibration": {label: Platt(slope=0.9, intercept=0.1) for label in LABELS},
        "study": "synthetic-study",
        "run": "run-1",
        "rounds": 3,
        "sites": 2,
        "strategy": "FedAvg",
        "software": "fedthorax 0.1.0",
        "trained_on_synthetic_data": True,
        "metrics": {f"mean_auroc_{label}": 0.8125 for label in LABELS},
    }
    return Description(**(facts | changes))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Release]:
    folder = tmp_path / "release"
    network = build_network(SETTINGS, seed=5)
    network.train()
    network(torch.randn(4, 2, 16, 16, 16), torch.zeros(4, 4))  # changes the buffers from their initial values
    return folder, save_release(folder, network, describe())


def code(folder: Path) -> str:
    with pytest.raises(Refusal) as caught:
        load_release(folder)
    assert str(folder) not in str(caught.value)
    return caught.value.code


def test_release_is_read_back_bit_for_bit(saved: tuple[Path, Release]) -> None:
    folder, written = saved
    read = load_release(folder)
    assert read.sha256 == written.sha256
    assert read.description == written.description
    assert not read.network.training
    scan, known = torch.randn(2, 2, 16, 16, 16), torch.ones(2, 4)
    with torch.inference_mode():
        assert torch.equal(read.network(scan, known), written.network.eval()(scan, known))


def test_release_has_three_files_and_equal_content_has_equal_hash(saved: tuple[Path, Release]) -> None:
    folder, written = saved
    assert sorted(path.name for path in folder.iterdir()) == [CARD, DESCRIPTION, WEIGHTS]
    again = save_release(folder.parent / "again", written.network, describe())
    other = save_release(folder.parent / "other", written.network, describe(rounds=4))
    assert again.sha256 == written.sha256 != other.sha256


@pytest.mark.parametrize("place", [0, 9, 200, -1], ids=["length", "header", "header's names", "last weight"])
def test_flipped_byte_in_the_weights_is_detected(saved: tuple[Path, Release], place: int) -> None:
    folder, _ = saved
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[place] ^= 0x10
    (folder / WEIGHTS).write_bytes(content)
    assert code(folder) == "E_MODEL_ALTERED"


def test_weights_of_another_network_are_refused_with_a_correct_hash(saved: tuple[Path, Release]) -> None:
    folder, _ = saved
    wider = NetworkSettings(architecture="resnet10", widen_factor=0.25)
    save_release(folder.parent / "wider", build_network(wider, seed=1), describe(network=wider))
    edit(folder.parent / "wider", lambda content: content.update(network=SETTINGS.model_dump()))
    assert code(folder.parent / "wider") == "E_MODEL_ALTERED"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / DESCRIPTION).read_text())
    change(content)
    (folder / DESCRIPTION).write_text(json.dumps(content))


def test_thresholds_of_an_earlier_version_are_plain_numbers(tmp_path: Path) -> None:
    release = save_release(tmp_path, build_network(SETTINGS, seed=1), describe())
    content = json.loads((tmp_path / DESCRIPTION).read_text())
    del content["missing_points"]
    content["operating_points"] = {"severe": {"rule_out": 0.1, "rule_in": 0.6}}
    (tmp_path / DESCRIPTION).write_text(json.dumps(content))
    read = load_release(tmp_path).description
    assert release.description.thresholds() == {}
    assert read.thresholds() == {"severe": {"rule_out": 0.1, "rule_in": 0.6}}
    assert read.operating_points["severe"]["rule_out"].evidence is None
    assert "An earlier version chose the points" in card(read, "f" * 64)
    assert set(read.why_missing("pcr_positive").values()) == {"The release defines no operating points."}


def test_card_says_why_there_is_no_threshold() -> None:
    few = {"why": "too_few", "positives": 12, "negatives": 30, "sites": 2}
    text = card(describe(missing_points={"severe": {"rule_out": few, "rule_in": few}}), "f" * 64)
    assert "- severe, to rule out: No operating point: 12 positive and 30 negative validation patients at 2" in text


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(format=2),
        lambda content: content.update(labels=["severe", "pcr_positive"]),
        lambda content: content.update(extra="field"),
        lambda content: content.pop("calibration"),
        lambda content: content["network"].update(widen_factor=-1),
        lambda content: content["network"].update(widen_factor=1e12),
        lambda content: content["network"].update(architecture="resnet152"),
        lambda content: content["calibration"]["severe"].update(slope="steep"),
        lambda content: content.update(operating_points={"severe": {"rule_out": 1.5}}),
        lambda content: content.update(operating_points={"severe": {"rule_up": 0.5}}),
        lambda content: content.update(operating_points={"mild": {"rule_out": 0.5}}),
    ],
    ids=[
        "format",
        "labels",
        "extra",
        "missing",
        "negative",
        "huge",
        "unknown network",
        "calibration",
        "no probability",
        "unknown point",
        "unknown label",
    ],
)
def test_unsupported_description_is_refused(
    saved: tuple[Path, Release], change: Callable[[dict[str, Any]], object]
) -> None:
    folder, _ = saved
    edit(folder, change)
    assert code(folder) == "E_MODEL_FORMAT"


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000])
def test_malformed_description_is_refused(saved: tuple[Path, Release], content: bytes) -> None:
    folder, _ = saved
    (folder / DESCRIPTION).write_bytes(content)
    assert code(folder) == "E_MODEL_FORMAT"


def test_old_release_without_thresholds_and_provenance_is_read(saved: tuple[Path, Release]) -> None:
    folder, _ = saved
    new = ("operating_points", "provenance", "intended_use", "limits")
    edit(folder, lambda content: [content.pop(name) for name in new])
    read = load_release(folder)
    assert read.description.operating_points == {} and read.description.provenance is None
    assert read.sha256 == hashlib.sha256((folder / DESCRIPTION).read_bytes()).hexdigest()


def test_edited_description_has_another_hash(saved: tuple[Path, Release]) -> None:
    folder, written = saved
    edit(folder, lambda content: content["calibration"]["severe"].update(slope=5.0))
    assert load_release(folder).sha256 != written.sha256


@pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION])
def test_release_with_missing_file_is_refused(saved: tuple[Path, Release], name: str) -> None:
    folder, _ = saved
    (folder / name).unlink()
    assert code(folder) == "E_NO_MODEL"
    assert code(folder / "nowhere") == "E_NO_MODEL"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    private, public = tmp_path / "release.key", tmp_path / "release.pub"
    private.write_bytes(new_private_key())
    public.write_bytes(public_key(private))
    return private, public


def test_signature_is_checked_if_a_trusted_key_is_given(saved: tuple[Path, Release], keys: tuple[Path, Path]) -> None:
    folder, _ = saved
    private, public = keys
    with pytest.raises(Refusal, match="E_NOT_SIGNED"):
        load_release(folder, [public])
    sign(folder, private)
    assert load_release(folder, [public]).signed_by == hashlib.sha256(public.read_bytes()).hexdigest()
    assert load_release(folder).signed_by is None, "a signature that was not checked is not reported"
    (folder / CARD).write_text("Good for every patient.")
    with pytest.raises(Refusal, match="E_SIGNATURE"):
        load_release(folder, [public])
    with pytest.raises(Refusal, match="E_NO_MODEL"):
        load_release(folder / "nowhere", [public])


def test_attacks_cannot_be_added_to_a_signed_release(saved: tuple[Path, Release], keys: tuple[Path, Path]) -> None:
    folder, written = saved
    sign(folder, keys[0])
    attacks = Attacks(
        release=written.sha256,
        software="test",
        membership_control=Control(value=1, needed=0.9),
        membership={},
        inversion_control=Control(value=30, needed=20),
        inversion=[],
    )
    with pytest.raises(Refusal, match="E_MODEL_SIGNED"):
        add_attacks(folder, attacks)
    assert load_release(folder, [keys[1]]).sha256 == written.sha256


class Trap:
    """Create a file when unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.sprung,)


def test_pickle_is_never_loaded_even_with_a_correct_hash(saved: tuple[Path, Release]) -> None:
    folder, _ = saved
    sprung = folder.parent / "sprung"
    for content in (pickle.dumps(Trap(sprung)), _torch_file(folder.parent / "trap.pt", sprung)):
        (folder / WEIGHTS).write_bytes(content)
        assert code(folder) == "E_MODEL_ALTERED"
        hashes = {"weights_sha256": hashlib.sha256(content).hexdigest()}
        edit(folder, partial(dict.update, **hashes))
        assert code(folder) == "E_MODEL_ALTERED"
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists(), "the trap works, therefore the test is able to fail"


def _torch_file(path: Path, sprung: Path) -> bytes:
    torch.save({"head.weight": Trap(sprung)}, path)
    return path.read_bytes()


def test_card_contains_required_statements(saved: tuple[Path, Release]) -> None:
    folder, written = saved
    text = (folder / CARD).read_text(encoding="utf-8")
    assert "Research use only" in text
    assert "Not a medical device" in text
    assert "SYNTHETIC hospitals" in text
    assert written.sha256 in text
    assert "| mean_auroc_severe | 0.812 |" in text


def test_card_says_synthetic_only_for_synthetic_training_data(saved: tuple[Path, Release]) -> None:
    folder, written = saved
    save_release(folder.parent / "real", written.network, describe(trained_on_synthetic_data=False))
    text = (folder.parent / "real" / CARD).read_text(encoding="utf-8")
    assert "SYNTHETIC" not in text
    assert "Research use only" in text


def test_release_with_nan_metric_can_be_read(saved: tuple[Path, Release]) -> None:
    folder, written = saved
    save_release(folder.parent / "nan", written.network, describe(metrics={"auroc_severe": math.nan}))
    assert math.isnan(load_release(folder.parent / "nan").description.metrics["auroc_severe"])


def test_card_states_epsilon_of_each_hospital(saved: tuple[Path, Release]) -> None:
    folder, _ = saved
    assert "ε" not in (folder / CARD).read_text(encoding="utf-8"), "no epsilon without differential privacy"
    privacy = Privacy(
        noise_multiplier=1.5,
        sample_rate=0.1,
        max_grad_norm=1,
        delta=1e-5,
        epsilon={"south": 7.914, "north": 3.2, "west": None},
    )
    network = build_network(SETTINGS.model_copy(update={"norm": "group"}), seed=5)
    described = describe(network=SETTINGS.model_copy(update={"norm": "group"}), privacy=privacy)
    save_release(folder.parent / "private", network, described)
    text = (folder.parent / "private" / CARD).read_text(encoding="utf-8")
    assert "| north | 3.20 |\n| south | 7.91 |\n| west | not reported |" in text
    assert "δ = 1e-05" in text and "not by itself stop" in text
    assert load_release(folder.parent / "private").description.privacy == privacy


def test_card_states_bands_and_limit_of_familiarity(saved: tuple[Path, Release]) -> None:
    folder, written = saved
    old = (folder / CARD).read_text(encoding="utf-8")
    assert "| severe | not reported | not reported | not reported | not reported |" in old
    assert "There is no limit for scans that differ" in old
    known = Familiarity(mean=(0.0,) * APPEARANCE_SIZE, variance=(1.0,) * APPEARANCE_SIZE, limit=2.125, sites=3)
    banded = Platt(slope=2.0, covariance=(0.04, 0.0, 0.25))
    described = describe(calibration={label: banded for label in LABELS}, familiarity=known)
    save_release(folder.parent / "new", written.network, described)
    text = (folder.parent / "new" / CARD).read_text(encoding="utf-8")
    low, high = banded.band(0.0) or (0, 0)
    row = next(line for line in text.splitlines() if line.startswith("| severe |") and "–" in line)
    assert row.split(" | ")[3] == f"{low:.2f}–{high:.2f}", "band for a model output of 0.5"
    assert "with a distance above 2.12 from the training scans gets no probability (3 hospitals)" in text
    assert load_release(folder.parent / "new").description == described.model_copy(
        update={"weights_sha256": written.description.weights_sha256}
    )


def test_old_release_without_bands_and_limits_is_read(saved: tuple[Path, Release]) -> None:
    folder, _ = saved
    edit(
        folder,
        lambda content: [content.pop("familiarity"), *(c.pop("covariance") for c in content["calibration"].values())],
    )
    read = load_release(folder).description
    assert read.familiarity is None
    assert read.calibration["severe"].band(0.5) is None
