"""Tests of private training: gradients per patient, the clipping bound, and noise that cannot be predicted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.compute import PROCESSOR, Compute
from models.loss import masked_bce
from models.network import SeverityNetwork, build_network
from models.network_settings import NetworkSettings
from pipeline.cohort.dataset import Example, Examples
from pipeline.cohort.store import Cohort
from pipeline.site.folder import Site
from pipeline.training import private_training
from pipeline.training.privacy_budget import PrivacySettings
from pipeline.training.private_training import (
    PatientOptimiser,
    draw,
    hook,
    patient_losses,
    step,
    train_privately,
    uniform,
)
from pipeline.training.train import predict
from pipeline.training.train_settings import Schedule, TrainSettings
from tests.helpers.fake_gpu import GPU, fake_gpu

pytestmark = pytest.mark.slow

SMALL = NetworkSettings(architecture="resnet10", widen_factor=0.125, norm="group")
# Plain gradient descent with a learning rate of 1: a step changes the weights by the gradient.
PLAIN = TrainSettings(augment=False, momentum=1e-12, weight_decay=0, learning_rate=1)
PATIENTS = 12


def privacy(*, noise: float, norm: float = 1.0, rate: float = 1.0) -> PrivacySettings:
    """Settings for tests. A study does not allow all of them: without noise there is no privacy."""
    return PrivacySettings.model_construct(noise_multiplier=noise, max_grad_norm=norm, sample_rate=rate, delta=1e-5)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """A bright cube in the positives, larger in the severe ones; some labels are missing."""
    folder = tmp_path_factory.mktemp("patients")
    rng = np.random.default_rng(0)
    made = []
    for number in range(PATIENTS):
        positive, severe = number % 2 == 0, number % 4 == 0
        scan = rng.normal(0, 0.3, (2, 16, 16, 16))
        if positive:
            size = 8 if severe else 4
            scan[0, 4 : 4 + size, 4 : 4 + size, 4 : 4 + size] += 2
        np.save(folder / f"{number}.npy", scan.astype(np.float16))
        made.append(Example(folder / f"{number}.npy", 60.0, "F", positive, None if number % 5 == 0 else severe))
    return Examples(made)


def network() -> SeverityNetwork:
    return build_network(SMALL, seed=1).train()


def flat(network: SeverityNetwork) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def change(examples: Examples, settings: PrivacySettings, drawn: list[int], *, at_once: int = 5) -> Tensor:
    """How much one step on the patients `drawn` subtracts from the weights."""
    trained = network()
    before = flat(trained)
    optimiser = PatientOptimiser(trained, PLAIN, settings, patients=len(examples))
    index = np.array(drawn, dtype=np.int64)
    step(hook(trained), optimiser, examples, index, at_once=at_once, augment=None)
    return before - flat(trained)


def own_gradients(examples: Examples) -> list[Tensor]:
    """The gradient of each single patient, by plain backpropagation."""
    gradients = []
    for number in range(len(examples)):
        alone = network()
        scans, tabular, targets = examples.batch(np.array([number]), None)
        masked_bce(alone(scans, tabular), targets).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in alone.parameters() if p.grad is not None]))
    return gradients


def test_batch_gradients_equal_those_of_each_patient(examples: Examples) -> None:
    trained = network()
    scans, tabular, targets = examples.batch(np.arange(PATIENTS), None)
    patient_losses(hook(trained)(scans, tabular), targets).sum().backward()
    found = torch.cat([p.grad_sample.flatten(1) for p in trained.parameters()], dim=1)
    expected = torch.stack(own_gradients(examples))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_network_with_batch_norm_is_refused(examples: Examples) -> None:
    mixed = build_network(SMALL.model_copy(update={"norm": "batch"}), seed=1)
    with pytest.raises(NotImplementedError):
        train_privately(mixed, examples, PLAIN, privacy(noise=1), Schedule(0, 1, 1), seed=1)


@pytest.mark.parametrize("at_once", [1, 5, 100])
def test_without_noise_and_clipping_the_step_is_the_mean_gradient(examples: Examples, at_once: int) -> None:
    found = change(examples, privacy(noise=0, norm=1e6), list(range(PATIENTS)), at_once=at_once)
    expected = torch.stack(own_gradients(examples)).mean(dim=0)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4 * float(expected.abs().max()))


def test_one_patient_changes_the_sum_by_at_most_the_bound(examples: Examples) -> None:
    bound = 0.01
    settings = privacy(noise=0, norm=bound)
    everybody = list(range(PATIENTS))
    assert min(float(gradient.norm()) for gradient in own_gradients(examples)) > 2 * bound, "else nothing is clipped"
    all_of_them = change(examples, settings, everybody)
    for left_out in (0, 5):
        without = change(examples, settings, [k for k in everybody if k != left_out])
        # The sum is divided by the expected number of patients, not by the drawn number.
        moved = float((all_of_them - without).norm()) * PATIENTS
        assert moved == pytest.approx(bound, rel=0.01)


def test_patient_without_finite_gradient_is_ignored(examples: Examples, tmp_path: Path) -> None:
    """Even whether the update is finite must not depend on one patient."""
    broken = np.load(examples.examples[0].tensor)
    broken[0, 3:6] = np.inf
    np.save(tmp_path / "broken.npy", broken)
    others = examples.examples[1:]
    spoilt = Examples([replace(examples.examples[0], tensor=tmp_path / "broken.npy"), *others])
    assert not torch.isfinite(own_gradients(spoilt)[0]).all(), "otherwise the test proves nothing"
    everybody, settings = list(range(PATIENTS)), privacy(noise=0, norm=0.01)
    with_it = change(spoilt, settings, everybody, at_once=4)
    assert torch.isfinite(with_it).all()
    torch.testing.assert_close(with_it, change(spoilt, settings, everybody[1:], at_once=4), rtol=1e-3, atol=1e-7)


def test_noise_has_the_required_size(examples: Examples) -> None:
    """Patients without labels have no gradient, so a step on them is only noise."""
    nothing = Examples([Example(e.tensor, e.age_years, e.sex, None, None) for e in examples.examples])
    settings = privacy(noise=3.0, norm=0.5, rate=0.25)
    for drawn in ([0, 1, 2], []):
        noise = change(nothing, settings, drawn).double() * (0.25 * PATIENTS)
        assert float(noise.std()) == pytest.approx(3.0 * 0.5, rel=0.01)
        assert abs(float(noise.mean())) < 0.02
        assert float(((noise / 1.5) ** 4).mean()) == pytest.approx(3, rel=0.1), "also normally distributed"


def test_same_step_twice_gives_different_results(examples: Examples) -> None:
    torch.manual_seed(1)
    first = change(examples, privacy(noise=1), [0, 1])
    torch.manual_seed(1)
    second = change(examples, privacy(noise=1), [0, 1])
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.5


def test_step_without_patients_is_only_noise(examples: Examples) -> None:
    assert torch.equal(change(examples, privacy(noise=0), []), torch.zeros_like(flat(network())))
    assert float(change(examples, privacy(noise=1), []).abs().max()) > 0


def test_seed_determines_neither_drawn_patients_nor_noise(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[int]] = []

    def watched(*args: object, **_: object) -> None:
        drawn.append(args[3].tolist())  # type: ignore[attr-defined]

    monkeypatch.setattr(private_training, "step", watched)
    for _ in range(2):
        train_privately(network(), examples, PLAIN, privacy(noise=1, rate=0.1), Schedule(0, 3, 3), seed=1)
    assert len(drawn) == 60, "an epoch has 1 / sample_rate steps"
    assert drawn[:30] != drawn[30:]
    assert [] in drawn and len({len(each) for each in drawn}) > 2, "batches differ in size"


def test_patients_are_drawn_independently_at_the_sample_rate() -> None:
    draws = np.stack([np.bincount(draw(200, 0.1), minlength=200) for _ in range(2000)])
    assert draws.max() == 1
    assert draws.mean() == pytest.approx(0.1, abs=0.003)
    assert draws.sum(axis=1).var() == pytest.approx(200 * 0.1 * 0.9, rel=0.2), "binomial: the draws are independent"
    assert draw(50, 1.0).tolist() == list(range(50))


@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_extreme_random_bytes_give_no_infinite_noise(byte: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_training.os, "urandom", lambda count: byte * count)
    (value,) = uniform(1)
    assert 0 < value < 1


def test_loss_of_a_patient_does_not_depend_on_other_labels(examples: Examples) -> None:
    _, _, targets = examples.batch(np.arange(PATIENTS), None)
    logits = torch.randn(PATIENTS, 2, generator=torch.Generator().manual_seed(0))
    alone = torch.stack([masked_bce(logits[k : k + 1], targets[k : k + 1]) for k in range(PATIENTS)])
    torch.testing.assert_close(patient_losses(logits, targets), alone)


def test_training_leaves_an_ordinary_network(examples: Examples) -> None:
    settings = TrainSettings(augment=True, learning_rate=0.02)
    trained = network()
    names = set(trained.state_dict())
    train_privately(trained, examples, settings, privacy(noise=1, rate=0.3), Schedule(0, 2, 4), seed=1)
    assert np.isfinite(predict(trained, examples)).all()
    assert not torch.equal(flat(trained), flat(network()))
    assert set(trained.state_dict()) == names
    assert not [module for module in trained.modules() if module._forward_hooks or module._backward_hooks]
    left = [getattr(p, name, None) for p in trained.parameters() for name in ("grad_sample", "summed_grad")]
    assert not [each for each in left if each is not None]


def test_network_learns_with_little_noise(examples: Examples) -> None:
    trained, settings = network(), TrainSettings(augment=False)
    train_privately(trained, examples, settings, privacy(noise=0.01, rate=0.5), Schedule(0, 12, 12), seed=1)
    positive = examples.targets[:, 0] == 1
    logits = predict(trained, examples)[:, 0]
    assert logits[positive].min() > logits[~positive].max()


def test_each_patient_is_one_example(small_site: Site) -> None:
    """There is one scan of each patient, so protection of an example is protection of a patient."""
    with Cohort(small_site) as cohort:
        patients = cohort.patients()
        examples = cohort.examples("train", "validation", "test")
    assert len(examples) == len(patients) == len({p.pseudonym for p in patients}) > 5
    assert len({e.tensor for e in examples}) == len(examples)


def test_noise_is_added_on_the_cpu_wherever_gradients_are_computed(examples: Examples) -> None:
    """The GPU of this test has no values, and returns zeros: what is left of the step is the noise of the CPU."""
    trained = network()
    with fake_gpu() as gpu:
        train_privately(trained, examples, PLAIN, privacy(noise=1, rate=0.5), Schedule(0, 1, 1), seed=1, compute=GPU)
    assert gpu.computed > 1000
    assert {tensor.device.type for tensor in trained.state_dict().values()} == {"cpu"}


@pytest.mark.parametrize("at_once", [0, 1, 3])
def test_parts_of_the_drawn_patients_are_one_private_step(examples: Examples, at_once: int) -> None:
    compute = Compute(micro_batch=at_once, precision="fp16")  # the precision does not apply
    trained, expected = network(), network()
    for made, chosen in ((trained, compute), (expected, PROCESSOR)):
        nearly_none = privacy(noise=1e-9)
        train_privately(made, examples, PLAIN, nearly_none, Schedule(0, 1, 1), seed=1, compute=chosen)
    torch.testing.assert_close(flat(trained), flat(expected), rtol=1e-3, atol=1e-5)
