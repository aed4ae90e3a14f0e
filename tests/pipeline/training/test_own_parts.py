"""Losses and transforms of packages: how training calls them, and what it refuses."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from models import own_code
from models.loss import masked_bce, patient_losses
from models.network import build_network
from models.network_settings import NetworkSettings
from models.own_packages import Kind, Named, Package, installed
from models.refusal import Refusal
from pipeline.cohort.dataset import Example, Examples
from pipeline.training.own_parts import OwnLoss, try_loss, try_transform
from pipeline.training.privacy_budget import PrivacySettings
from pipeline.training.private_training import patient_losses_of, train_privately
from pipeline.training.train import augmentation_of, loss_of, predict, train
from pipeline.training.train_settings import Schedule, TrainSettings
from tests.helpers.own_package import PARTS_CODE, write_package

NAN = float("nan")
TARGETS = torch.tensor([[0.0, NAN], [1.0, 1.0], [NAN, NAN], [1.0, 0.0], [NAN, 0.0]])
LOGITS = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
USUAL = """
import torch.nn.functional as F


def usual(logits, targets, known):
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (losses * known).sum(dim=1) / known.sum(dim=1)
"""
_NUMBERS = itertools.count()


def packed(folder: Path, code: str, parts: Mapping[Kind, tuple[str, ...]]) -> Package:
    """Allow a package under a name of its own: a process imports one version of a module only."""
    name = f"parts-{next(_NUMBERS)}"
    package = installed(name, [write_package(folder / name, name, networks=(), parts=parts, parts_code=code)])
    own_code.allow(package)
    return package


def settings(
    folder: Path, code: str = PARTS_CODE, *, loss: str = "", transform: str = "", **more: object
) -> TrainSettings:
    parts: dict[Kind, tuple[str, ...]] = {}
    if loss:
        parts["loss"] = (loss,)
    if transform:
        parts["transform"] = (transform,)
    package = packed(folder, code, parts)
    for kind, name in (("loss", loss), ("transform", transform)):
        if name:
            more |= {kind: f"{package.name}:{name}", f"{kind}_code": package.sha256}
    return TrainSettings.model_validate(more)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    folder, made = tmp_path_factory.mktemp("patients"), []
    rng = np.random.default_rng(0)
    for number in range(6):
        np.save(folder / f"{number}.npy", rng.normal(0, 0.3, (2, 16, 16, 16)).astype(np.float16))
        made.append(Example(folder / f"{number}.npy", 60.0, "F", number % 2 == 0, number % 4 == 0))
    return Examples(made)


def test_loss_of_a_batch_is_the_mean_over_patients_with_a_label_and_parts_add_up(tmp_path: Path) -> None:
    loss = loss_of(settings(tmp_path, USUAL, loss="usual"))
    alone = [masked_bce(LOGITS[k : k + 1], TARGETS[k : k + 1]) for k in range(5)]
    together = loss(LOGITS, TARGETS, TARGETS)
    torch.testing.assert_close(together, torch.stack(alone).sum() / 4)
    parts = [loss(LOGITS[part], TARGETS[part], TARGETS) for part in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(torch.stack(parts).sum(), together)


def test_settings_of_the_study_reach_the_loss(tmp_path: Path) -> None:
    chosen = settings(tmp_path, loss="focal", loss_settings={"gamma": 0.0})
    usual = patient_losses(LOGITS, TARGETS)
    torch.testing.assert_close(patient_losses_of(chosen)(LOGITS, TARGETS), usual)
    weaker = chosen.model_copy(update={"loss_settings": {"gamma": 2.0}})
    assert (patient_losses_of(weaker)(LOGITS, TARGETS) <= usual).all()


@pytest.mark.parametrize("name", ["gama", "logits"])
def test_setting_that_a_part_does_not_have_is_named_before_any_patient(tmp_path: Path, name: str) -> None:
    """Not only 'it fails', as a mistake of the package would read."""
    chosen = settings(tmp_path, loss="focal", loss_settings={"gamma": 1.0, name: 1.0}, transform="dimmed")
    with pytest.raises(Refusal, match=f"has no argument with a default called {name}, which") as refused:
        patient_losses_of(chosen)
    assert refused.value.code == "E_PACKAGE_PART"
    wrong = chosen.model_copy(update={"transform_settings": {name: 1.0}})
    with pytest.raises(Refusal, match=f"has no argument with a default called {name}, which"):
        augmentation_of(wrong, np.random.default_rng(1))


def test_names_of_a_packages_arguments_are_not_told(tmp_path: Path) -> None:
    """Code that reads a hospital's files could choose them, and a refusal may travel."""
    code = "def bad(logits, targets, known, *, patient_4711=1.0):\n    return logits.sum(dim=1)\n"
    part = settings(tmp_path, code, loss="bad").own_loss
    assert part is not None
    with pytest.raises(Refusal, match="E_PACKAGE_PART") as refused:
        try_loss(part, {"other": 1.0})
    assert "4711" not in f"{refused.value} {refused.value.private}"


def test_loss_never_gets_two_patients_at_once(tmp_path: Path) -> None:
    """Otherwise the gradient of one patient, which private training clips, could depend on another."""
    code = "def alone(logits, targets, known):\n    assert logits.shape == targets.shape == known.shape == (1, 2)\n"
    chosen = settings(tmp_path, code + "    return logits.sum(dim=1)\n", loss="alone")
    torch.testing.assert_close(
        patient_losses_of(chosen)(LOGITS, TARGETS)[[0, 1, 3, 4]], LOGITS[[0, 1, 3, 4]].sum(dim=1)
    )
    assert patient_losses_of(chosen)(LOGITS, TARGETS)[2] == 0, "no label is known"


@pytest.mark.parametrize(
    "body",
    [
        "return logits.sum()",
        "return logits.sum(dim=0)",
        "return 1.0",
        "return logits.sum(dim=1) * float('nan')",
        "return logits.sum(dim=1) / 0",
        "return logits.sum(dim=1).long()",
        "return logits.detach().sum(dim=1)",
        "raise RuntimeError('patient 4711')",
        "return logits.sum(dim=1) * torch.rand(())",
        "seen.append(logits.detach()); return logits.sum(dim=1) * len(seen)",
        "return (logits - logits.detach()).abs().sqrt().sum(dim=1)",
    ],
)
def test_unusable_loss_is_refused_without_its_text(tmp_path: Path, body: str) -> None:
    code = f"import torch\n\nseen = []\n\n\ndef bad(logits, targets, known):\n    {body}\n"
    part = settings(tmp_path, code, loss="bad").own_loss
    assert part is not None
    with pytest.raises(Refusal, match="E_PACKAGE_PART") as refused:
        try_loss(part)
    assert "4711" not in str(refused.value)


@pytest.mark.parametrize(
    "body",
    [
        "return scan[:, 1:]",
        "return scan.double()",
        "return scan.numpy()",
        "return scan / 0",
        "scan[0, 0, 0, 0] = float('nan'); return scan",
        "scan.resize_(1, 1, 1, 1); return scan",
        "raise RuntimeError('patient 4711')",
        "return scan + torch.rand(())",
    ],
)
def test_unusable_transform_is_refused_without_its_text(tmp_path: Path, body: str) -> None:
    part = settings(
        tmp_path, f"import torch\n\n\ndef bad(scan, generator):\n    {body}\n", transform="bad"
    ).own_transform
    assert part is not None
    with pytest.raises(Refusal, match="E_PACKAGE_PART") as refused:
        try_transform(part)
    assert "4711" not in str(refused.value)


def test_module_that_cannot_be_imported_is_refused(tmp_path: Path) -> None:
    chosen = settings(tmp_path, "raise ValueError('patient 4711')\n", loss="focal", transform="dimmed")
    assert chosen.own_loss and chosen.own_transform
    with pytest.raises(Refusal, match="E_PACKAGE_PART"):
        try_loss(chosen.own_loss)
    with pytest.raises(Refusal, match="E_NETWORK_PACKAGE"):
        OwnLoss.open(Named("loss", chosen.loss.replace("focal", "unknown"), chosen.loss_code), {})


def test_seed_determines_the_transform_which_follows_the_augmentation(tmp_path: Path) -> None:
    scan = torch.rand(2, 8, 8, 8)
    for augment in (False, True):
        chosen = settings(tmp_path, transform="dimmed", augment=augment)
        first, again, other = (augmentation_of(chosen, np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert first and again and other
        assert torch.equal(first(scan.clone()), again(scan.clone()))
        assert not torch.equal(first(scan.clone()), other(scan.clone()))
    assert augmentation_of(TrainSettings(augment=False), np.random.default_rng(1)) is None


@pytest.mark.slow
def test_training_uses_loss_and_transform_and_evaluation_does_not(tmp_path: Path, examples: Examples) -> None:
    count = "\n\ncalls = []\n\n\ndef counted(scan, generator):\n    calls.append(1)\n    return scan\n"
    chosen = settings(tmp_path, PARTS_CODE + count, loss="focal", transform="counted", augment=False, batch_size=3)
    assert chosen.own_transform
    calls = own_code.function(chosen.own_transform).__globals__["calls"]
    network = build_network(NetworkSettings(architecture="resnet10", widen_factor=0.125), seed=1)
    losses = [
        train(network, examples, each, Schedule(0, 1, 2), seed=1)
        for each in (chosen, chosen.model_copy(update={"loss_settings": {"gamma": 0.0}}))
    ]
    assert losses[0] < 0.8 * losses[1], "the focal loss is smaller"
    assert len(calls) == 12
    predict(network, examples)
    assert len(calls) == 12


@pytest.mark.slow
def test_private_training_clips_each_patient_with_any_loss(tmp_path: Path, examples: Examples) -> None:
    """A loss a million times as large moves the weights no further than max_grad_norm allows."""
    code = PARTS_CODE + "\n\ndef huge(logits, targets, known):\n    return 1e6 * focal(logits, targets, known)\n"
    chosen = settings(tmp_path, code, loss="huge", augment=False, momentum=1e-12, weight_decay=0, learning_rate=1)
    privacy = PrivacySettings.model_construct(noise_multiplier=0.0, max_grad_norm=0.5, sample_rate=1.0, delta=1e-5)
    network = build_network(NetworkSettings(architecture="resnet10", widen_factor=0.125, norm="group"), seed=1)
    before = torch.cat([weight.detach().flatten().clone() for weight in network.parameters()])
    train_privately(network, examples, chosen, privacy, Schedule(0, 1, 1), seed=1)
    after = torch.cat([weight.detach().flatten() for weight in network.parameters()])
    assert 0 < float((after - before).norm()) <= 0.5 * 1.001


def test_settings_name_part_and_code_exactly(tmp_path: Path) -> None:
    assert not {"loss", "transform", "loss_settings"} & TrainSettings().model_dump().keys()
    wrong: list[dict[str, object]] = [
        {"loss": "my-parts:focal"},
        {"loss": "focal"},
        {"loss": "../parts:focal", "loss_code": "0" * 64},
        {"loss_code": "0" * 64},
        {"loss_settings": {"gamma": 1.0}},
        {"transform": "my-parts:dimmed"},
        {"transform_code": "0" * 64},
        {"loss": "my-parts:focal", "loss_code": "0" * 64, "loss_settings": {"gamma": float("nan")}},
        {"loss": "my-parts:focal", "loss_code": "0" * 64, "loss_settings": {"__class__": 1.0}},
    ]
    for content in wrong:
        with pytest.raises(ValidationError):
            TrainSettings.model_validate(content)
    named = TrainSettings(loss="my-parts:focal", loss_code="0" * 64, loss_settings={"gamma": 1.0})
    assert TrainSettings.model_validate_json(named.model_dump_json()) == named
