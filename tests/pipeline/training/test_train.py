"""Tests of training: it is reproducible from its seed, it learns, and missing labels have no effect."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from models.loss import patient_losses
from models.network import SeverityNetwork, build_network
from models.network_settings import NetworkSettings
from models.refusal import Refusal
from pipeline.cohort.dataset import Example, Examples
from pipeline.training.train import augmentation, batches, cross_entropy_by_patient, epoch_batches, predict, train
from pipeline.training.train_settings import Schedule, TrainSettings

SHAPE = (2, 16, 16, 16)
SMALL = NetworkSettings(architecture="resnet10", widen_factor=0.125)
PLAIN = TrainSettings(augment=False)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """Synthetic and easy: a bright cube in the positives, twice as large in the severe ones; noise in all."""
    folder = tmp_path_factory.mktemp("easy")
    rng = np.random.default_rng(0)
    made = []
    for number in range(24):
        positive, severe = number % 2 == 0, number % 4 == 0
        scan = rng.normal(0, 0.3, SHAPE)
        if positive:
            size = 8 if severe else 4
            scan[0, 4 : 4 + size, 4 : 4 + size, 4 : 4 + size] += 2
        np.save(folder / f"{number}.npy", scan.astype(np.float16))
        made.append(Example(folder / f"{number}.npy", 60.0, "F", positive, severe))
    return Examples(made)


def trained(
    examples: Examples, settings: TrainSettings = PLAIN, *stretches: Schedule, seed: int = 3
) -> tuple[SeverityNetwork, list[float]]:
    network = build_network(SMALL, seed=1)
    losses = [train(network, examples, settings, stretch, seed=seed) for stretch in stretches or [Schedule(0, 2, 2)]]
    return network, losses


def same(first: SeverityNetwork, second: SeverityNetwork) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("augment", [False, True])
def test_same_seed_gives_the_same_network_bit_for_bit(examples: Examples, augment: bool) -> None:
    settings = TrainSettings(augment=augment)
    torch.manual_seed(11)
    first, losses = trained(examples, settings)
    torch.manual_seed(12)  # the result must not depend on the state of the process
    np.random.seed(12)
    again, losses_again = trained(examples, settings)
    other, _ = trained(examples, settings, seed=4)
    assert same(first, again) and losses == losses_again
    assert not same(first, other)


@pytest.mark.slow
def test_loss_falls_and_classes_separate(examples: Examples) -> None:
    network, (first, last) = trained(examples, PLAIN, Schedule(0, 1, 20), Schedule(1, 19, 20))
    assert last < first / 3
    logits, targets = predict(network, examples), examples.targets
    for label in (0, 1):
        positive, negative = logits[targets[:, label] == 1, label], logits[targets[:, label] == 0, label]
        assert positive.min() > negative.max()


def test_two_parts_of_a_schedule_equal_one_except_for_momentum(examples: Examples) -> None:
    """Order, augmentation and learning rate continue. Momentum restarts, because new weights come from the server."""
    halves = Schedule(0, 1, 2), Schedule(1, 1, 2)
    assert not same(trained(examples)[0], trained(examples, PLAIN, *halves)[0])
    without = TrainSettings(momentum=1e-9)
    whole, parts = trained(examples, without)[0], trained(examples, without, *halves)[0]
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_learning_rate_warms_up_and_falls_to_zero_for_any_split() -> None:
    whole = Schedule(0, 10, 10)
    rates = [whole.learning_rate(0.1, epoch, progress) for epoch in range(10) for progress in (0.0, 0.5)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == rates[2], "the first epoch warms up"
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert whole.learning_rate(0.1, 9, 1.0) == pytest.approx(0, abs=1e-9)
    assert Schedule(7, 3, 10).learning_rate(0.1, 1, 0.5) == whole.learning_rate(0.1, 8, 0.5)


def test_every_patient_is_used_once_before_any_is_repeated() -> None:
    rng = np.random.default_rng(1)
    drawn = epoch_batches(10, 4, 7, rng)  # a pass has three batches
    assert len(drawn) == 7
    for begins in (0, 3):
        assert sorted(np.concatenate(drawn[begins : begins + 3]).tolist()) == list(range(10))
    assert len(epoch_batches(10, 4, 0, rng)) == 3
    assert len(epoch_batches(10, 4, 2, rng)) == 2


def test_fixed_steps_make_the_work_of_a_round_equal_at_all_sites(examples: Examples) -> None:
    """As many steps as an epoch has batches equal that epoch; twice as many do not."""
    batches_a_pass = len(epoch_batches(len(examples), PLAIN.batch_size, 0, np.random.default_rng(0)))
    one, _ = trained(examples, PLAIN, Schedule(0, 1, 2))
    as_steps, _ = trained(examples, PLAIN, Schedule(0, 1, 2, steps=batches_a_pass))
    more, _ = trained(examples, PLAIN, Schedule(0, 1, 2, steps=2 * batches_a_pass))
    assert same(one, as_steps)
    assert not same(one, more)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_batches_contain_each_patient_once_and_at_least_two_patients(size: int) -> None:
    for count in range(2, 40):
        found = list(batches(count, size, np.random.default_rng(count)))
        assert sorted(np.concatenate(found).tolist()) == list(range(count))
        assert min(map(len, found)) >= 2
        assert max(map(len, found)) <= size + 1
    first, second = (np.concatenate(list(batches(40, size, np.random.default_rng(s)))).tolist() for s in (1, 2))
    assert first != second != list(range(40))


def test_single_patient_still_makes_a_batch() -> None:
    assert [each.tolist() for each in batches(1, 8, np.random.default_rng(0))] == [[0]]


def test_label_without_values_is_not_learnt(examples: Examples) -> None:
    """Without weight decay, because it changes weights even without data."""
    unknown = Examples([Example(e.tensor, e.age_years, e.sex, e.pcr_positive, None) for e in examples.examples])
    before = build_network(SMALL, seed=1)
    after, losses = trained(unknown, TrainSettings(augment=False, weight_decay=0))
    assert torch.equal(after.head.weight[1], before.head.weight[1])
    assert torch.equal(after.head.bias[1], before.head.bias[1])
    assert not torch.equal(after.head.weight[0], before.head.weight[0])
    assert np.isfinite(losses).all()


def test_nothing_is_learnt_without_labels(examples: Examples) -> None:
    nothing = Examples([Example(e.tensor, e.age_years, e.sex, None, None) for e in examples.examples])
    after, losses = trained(nothing, TrainSettings(augment=False, weight_decay=0))
    assert losses == [0.0]
    before = dict(build_network(SMALL, seed=1).named_parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.named_parameters())


def test_training_updates_batch_norm_statistics(examples: Examples) -> None:
    """This holds whatever mode the network was in; evaluation leaves it in evaluation mode."""
    network = build_network(SMALL, seed=1)
    predict(network, examples)
    untouched = network.backbone.bn1.running_mean.clone()
    assert torch.equal(untouched, torch.zeros_like(untouched)), "prediction does not change them"
    train(network, examples, PLAIN, Schedule(0, 1, 1), seed=3)
    assert not torch.equal(network.backbone.bn1.running_mean, untouched)


def test_predictions_depend_only_on_the_patient(examples: Examples) -> None:
    network, _ = trained(examples)
    logits = predict(network, examples)
    assert logits.shape == (24, 2) and logits.dtype == np.float32
    np.testing.assert_allclose(predict(network, examples, batch_size=3), logits, atol=1e-5)
    backwards = predict(network, Examples(examples.examples[::-1]))
    np.testing.assert_allclose(backwards[::-1], logits, atol=1e-5)
    assert predict(network, Examples([])).shape == (0, 2)


def _ramp() -> Tensor:
    """Increases along slices, rows and columns at once."""
    axis = torch.linspace(-1, 1, 12)
    return (axis[:, None, None] + axis[None, :, None] + axis[None, None, :]).expand(2, -1, -1, -1).clone()


def test_augmentation_mirrors_only_left_and_right() -> None:
    mirrored = 0
    for seed in range(30):
        found = augmentation(seed)(_ramp())
        assert found.shape == (2, 12, 12, 12)
        slices, rows, columns = (float(found.diff(dim=dim).mean()) for dim in (1, 2, 3))
        assert slices > 0.1 and rows > 0.1, "the other two axes are not mirrored"
        assert abs(columns) > 0.1
        mirrored += columns < 0
    assert 5 < mirrored < 25


def test_seed_determines_the_augmentation() -> None:
    first, again, other = (augmentation(seed)(_ramp()) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_missing_scan_file_ends_the_training(examples: Examples, tmp_path: Path) -> None:
    gone = Examples([*examples.examples[:8], Example(tmp_path / "gone.npy", None, None, True, True)])
    with pytest.raises(Refusal, match="E_COHORT_FILE"):
        trained(gone)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 1},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"momentum": 0},
        {"momentum": 1},
        {"weight_decay": -1},
        {"epochs": 3},
    ],
    ids=str,
)
def test_settings_that_cannot_train_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainSettings.model_validate(wrong)


def test_fedprox_keeps_weights_near_the_received_ones(examples: Examples) -> None:
    came_in = build_network(SMALL, seed=1)

    def distance(mu: float) -> float:
        network = build_network(SMALL, seed=1)
        train(network, examples, PLAIN, Schedule(0, 4, 4), seed=3, proximal_mu=mu)
        pairs = zip(network.parameters(), came_in.parameters(), strict=True)
        return sum(float((weight - before).detach().square().sum()) for weight, before in pairs) ** 0.5

    free, held, tight = (distance(mu) for mu in (0.0, 1.0, 5.0))
    assert tight < 0.7 * held < 0.7 * free


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[Examples]:
    """Two hospitals with the features of an encoder: 12 patients with most severities, 36 with few."""
    folder = tmp_path_factory.mktemp("features")
    rng = np.random.default_rng(0)
    made: list[list[Example]] = [[], []]
    for number in range(48):
        place = 0 if number < 12 else 1
        np.save(folder / f"{number}.npy", rng.normal(0, 1, 4).astype(np.float32))
        severe = bool(rng.random() < 0.5) if rng.random() < (0.9, 0.2)[place] else None
        made[place].append(Example(folder / f"{number}.npy", 60.0, "F", bool(rng.random() < 0.5), severe))
    return [Examples(each) for each in made]


def one_step_heads(hospitals: list[Examples], loss: str) -> tuple[SeverityNetwork, SeverityNetwork]:
    """Return a head that two hospitals trained in one step a round, and one of all their patients."""
    head = NetworkSettings(encoder="a" * 64, encoder_features=4, norm="group", tabular_features=8)
    settings = TrainSettings.model_validate({"augment": False, "batch_size": 1000, "loss": loss})
    pooled, ours = build_network(head, seed=1), build_network(head, seed=1)
    everybody = Examples([example for each in hospitals for example in each.examples])
    for number in range(10):
        train(pooled, everybody, settings, Schedule(number, 1, 10), seed=1)
        found = []
        for place, each in enumerate(hospitals):
            network = copy.deepcopy(ours)
            train(network, each, settings, Schedule(number, 1, 10), seed=place)
            found.append(network.state_dict())
        share = len(hospitals[0]) / len(everybody)
        ours.load_state_dict({key: share * found[0][key] + (1 - share) * found[1][key] for key in found[0]})
    return pooled, ours


def test_heads_in_one_step_a_round_are_one_if_each_patient_counts_the_same(hospitals: list[Examples]) -> None:
    pooled, ours = one_step_heads(hospitals, "cross_entropy_by_patient")
    torch.testing.assert_close(ours.head.weight, pooled.head.weight, rtol=0, atol=1e-5)


def test_heads_differ_if_each_label_counts_the_same(hospitals: list[Examples]) -> None:
    pooled, ours = one_step_heads(hospitals, "cross_entropy")
    of_pcr, of_severe = (ours.head.weight - pooled.head.weight).abs().amax(dim=1)
    assert of_pcr < 1e-3
    assert of_severe > 1e-2


def test_loss_by_patient_is_the_same_in_parts_of_a_batch() -> None:
    rng = torch.Generator().manual_seed(1)
    logits, targets = torch.randn(6, 2, generator=rng), torch.randint(0, 2, (6, 2), generator=rng).float()
    targets[0, 1] = targets[3, 0] = math.nan
    whole = cross_entropy_by_patient(logits, targets, targets)
    parts = [cross_entropy_by_patient(logits[part], targets[part], targets) for part in (slice(0, 2), slice(2, 6))]
    assert sum(parts) == pytest.approx(whole)
    assert whole == pytest.approx(patient_losses(logits, targets).mean())
