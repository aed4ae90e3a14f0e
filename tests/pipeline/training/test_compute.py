"""Training and evaluation on other processors and with less memory: the same steps, nearly the same result.

The CPU in fp16 and a GPU without values (`tests.helpers.fake_gpu`) stand for real GPUs.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.compute import PROCESSOR, Compute
from models.loss import masked_bce
from models.network import SeverityNetwork, build_network
from models.network_settings import NetworkSettings
from models.refusal import Refusal
from pipeline.cohort.dataset import Example, Examples
from pipeline.evaluation.shortcuts import embed, outside_auroc
from pipeline.training.head_finetune import fit_head
from pipeline.training.train import predict, step, train
from pipeline.training.train_settings import Schedule, TrainSettings
from tests.helpers.fake_gpu import GPU, fake_gpu

SETTINGS = TrainSettings(batch_size=4, vary_appearance=True)
EPOCHS = Schedule(0, 2, 2)
FP32, FP16 = Compute(precision="fp32"), Compute(precision="fp16")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """Nine patients, so that the last batch of one is merged; one has no label for severity."""
    folder = tmp_path_factory.mktemp("patients")
    rng = np.random.default_rng(0)
    made = []
    for number in range(9):
        scan = rng.uniform(-1, 1, (2, 8, 16, 16))
        scan[1] = scan[1] > 0
        np.save(folder / f"{number}.npy", scan.astype(np.float16))
        made.append(
            Example(folder / f"{number}.npy", 50.0 + number, "F", True, None if number == 4 else number % 2 == 0)
        )
    return Examples(made)


def network(norm: str = "batch") -> SeverityNetwork:
    settings = {"architecture": "resnet10", "widen_factor": 0.0625, "norm": norm, "tabular": "fixed"}
    return build_network(NetworkSettings.model_validate(settings), seed=1)


def trained(examples: Examples, compute: Compute, *, norm: str = "batch", mu: float = 0.1) -> SeverityNetwork:
    made = network(norm)
    loss = train(made, examples, SETTINGS, EPOCHS, seed=3, proximal_mu=mu, compute=compute)
    assert np.isfinite(loss)
    return made


def flat(made: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in made.parameters()])


def counts(made: nn.Module) -> set[int]:
    return {int(value) for name, value in made.state_dict().items() if name.endswith("num_batches_tracked")}


def same(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return all(torch.equal(one[name], other[name]) for name in one)


def change_of_a_step(examples: Examples, compute: Compute, norm: str = "batch", at_once: int = 0) -> Tensor:
    """How one step changes the weights. Over more steps, differences of rounding grow."""
    made = network(norm).train()
    before = flat(made)
    batch = examples.batch(np.arange(5), None)
    step(made, torch.optim.SGD(made.parameters(), lr=1.0), *batch, compute=compute, at_once=at_once)
    return flat(made) - before


# --- the same bits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("compute", [PROCESSOR, FP32, FP16])
def test_same_processor_gives_the_same_bits(examples: Examples, compute: Compute) -> None:
    assert same(trained(examples, compute), trained(examples, compute))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_checkpoints_and_prefetch_change_no_bit(examples: Examples, norm: str) -> None:
    expected = trained(examples, FP32, norm=norm)
    for other in (replace(FP32, checkpointing=True), replace(FP32, prefetch=3)):
        assert same(trained(examples, other, norm=norm), expected)


# --- 16 bits ----------------------------------------------------------------------------------------------


def test_fp16_learns_the_same_up_to_rounding(examples: Examples) -> None:
    found, expected = (change_of_a_step(examples, compute) for compute in (FP16, FP32))
    assert 0 < (found - expected).norm() < 0.05 * expected.norm()
    made = trained(examples, FP16)
    np.testing.assert_allclose(predict(made, examples, compute=FP16), predict(made, examples, compute=FP32), atol=0.02)


def first_batch(examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
    return examples.batch(np.arange(4), None)


def test_a_scale_that_is_too_large_costs_no_step(examples: Examples) -> None:
    """torch's scaler would skip the step; here the batch is computed again with a smaller scale, and counted once."""
    made = network().train()
    optimiser = torch.optim.SGD(made.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**36)
    before = flat(made)
    step(made, optimiser, *first_batch(examples), compute=FP16, scaler=scaler)
    assert scaler.get_scale() < 2.0**36
    assert not torch.equal(flat(made), before) and torch.isfinite(flat(made)).all()
    assert counts(made) == {1}
    assert all(torch.isfinite(buffer).all() for buffer in made.buffers())


def test_gradients_that_fit_no_scale_are_refused(examples: Examples) -> None:
    made = network().train()
    with torch.no_grad():
        made.head.weight.fill_(torch.nan)
    with pytest.raises(Refusal) as caught:
        step(made, torch.optim.SGD(made.parameters(), lr=0.1), *first_batch(examples), compute=FP16)
    assert caught.value.code == "E_COMPUTE_SCALE"


# --- batches in parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_parts_of_a_batch_are_one_step(examples: Examples, at_once: int) -> None:
    """Also where a label is missing: the loss weights a label by how often the whole batch knows it."""
    found, expected = (change_of_a_step(examples, FP32, "group", at_once) for at_once in (at_once, 0))
    assert (found - expected).norm() < 1e-3 * expected.norm()
    assert np.isfinite(flat(trained(examples, replace(FP32, micro_batch=at_once), norm="group"))).all()


def test_losses_of_parts_add_up() -> None:
    draws = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 2, generator=draws)
    targets = torch.tensor([[1, 0], [0, torch.nan], [torch.nan, torch.nan], [1, torch.nan], [0, torch.nan]])
    parts = [masked_bce(logits[part], targets[part], batch=targets) for part in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(sum(parts), masked_bce(logits, targets))


def test_batch_norm_refuses_parts_before_anything_is_computed(examples: Examples) -> None:
    made = network()
    before = flat(made)
    with pytest.raises(Refusal, match="E_COMPUTE_MICRO_BATCH"):
        train(made, examples, SETTINGS, EPOCHS, seed=3, compute=replace(FP32, micro_batch=2))
    assert torch.equal(flat(made), before)
    assert same(trained(examples, replace(FP32, micro_batch=4)), trained(examples, FP32)), "not divided"


@pytest.mark.parametrize(
    "compute",
    [PROCESSOR, FP16, replace(FP32, checkpointing=True), replace(FP16, checkpointing=True), replace(FP32, prefetch=2)],
)
def test_batch_norm_counts_the_steps_that_the_gateway_expects(examples: Examples, compute: Compute) -> None:
    """Nine patients in batches of four: two batches in each of two epochs."""
    assert counts(trained(examples, compute)) == {4}


# --- several GPUs -----------------------------------------------------------------------------------------

THREE = replace(FP32, others=(torch.device("cpu"),) * 2)  # copies on the CPU stand for those on GPUs


@pytest.mark.parametrize("at_once", [0, 1])
@pytest.mark.parametrize("mu", [0.0, 0.1])
def test_several_gpus_take_one_step_together(examples: Examples, at_once: int, mu: float) -> None:
    """Five patients on three devices, one label missing: the same step as on one device, up to rounding."""
    settings = TrainSettings(batch_size=5, augment=False)

    def change(compute: Compute) -> Tensor:
        made = network("group")
        before = flat(made)
        train(
            made, Examples(examples.examples[:5]), settings, Schedule(0, 1, 1), seed=3, proximal_mu=mu, compute=compute
        )
        return flat(made) - before

    found, expected = change(replace(THREE, micro_batch=at_once)), change(FP32)
    assert 0 < (found - expected).norm() < 1e-3 * expected.norm()


def test_several_gpus_learn_over_many_steps_and_repeat_to_the_bit(examples: Examples) -> None:
    found = trained(examples, THREE, norm="group")
    assert same(found, trained(examples, THREE, norm="group"))
    assert same(found, trained(examples, replace(THREE, checkpointing=True, prefetch=2), norm="group"))
    assert same(found, trained(examples, replace(FP32, micro_batch=2), norm="group")), "the same parts on one device"


def test_a_batch_smaller_than_the_number_of_gpus_is_computed(examples: Examples) -> None:
    two = Examples(examples.examples[:2])
    made = network("group")
    assert np.isfinite(
        train(made, two, SETTINGS, EPOCHS, seed=3, compute=replace(FP32, others=(torch.device("cpu"),) * 4))
    )


def test_batch_norm_stays_on_the_first_gpu(examples: Examples) -> None:
    found = trained(examples, THREE)
    assert same(found, trained(examples, FP32)) and counts(found) == {4}


def test_fp16_on_several_gpus_finds_a_scale_that_fits_all(examples: Examples) -> None:
    made, compute = network("group").train(), replace(THREE, precision="fp16")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**36)
    before = flat(made)
    with compute.train(made) as replicas:
        optimiser = torch.optim.SGD(made.parameters(), lr=0.1)
        step(made, optimiser, *first_batch(examples), compute=compute, scaler=scaler, replicas=replicas)
    assert scaler.get_scale() < 2.0**36
    assert torch.isfinite(flat(made)).all() and not torch.equal(flat(made), before)


# --- a GPU ------------------------------------------------------------------------------------------------


def run_on_gpu(work: Callable[[SeverityNetwork], object], norm: str = "batch") -> SeverityNetwork:
    """Run on the GPU without values; check that it computed, and that the network came back."""
    made = network(norm)
    with fake_gpu() as gpu:
        work(made)
    assert gpu.computed > 20
    assert {tensor.device.type for tensor in made.state_dict().values()} == {"cpu"}
    return made


@pytest.mark.parametrize(
    ("norm", "compute"),
    [
        ("batch", GPU),
        ("batch", replace(GPU, checkpointing=True, prefetch=2)),
        ("group", replace(GPU, micro_batch=2)),
        ("group", replace(GPU, others=(GPU.device,), checkpointing=True)),
    ],
)
def test_training_runs_on_a_gpu(examples: Examples, norm: str, compute: Compute) -> None:
    def work(made: SeverityNetwork) -> None:
        train(made, examples, SETTINGS, EPOCHS, seed=3, proximal_mu=0.1, compute=compute)

    run_on_gpu(work, norm)


@pytest.mark.parametrize("work", [predict, embed, outside_auroc])
def test_evaluation_runs_on_a_gpu(examples: Examples, work: Callable[..., object]) -> None:
    run_on_gpu(lambda made: work(made, examples, compute=replace(GPU, micro_batch=2)))


def test_head_is_fitted_to_features_from_a_gpu(examples: Examples) -> None:
    made = run_on_gpu(lambda made: fit_head(made, examples, compute=GPU))
    assert torch.isfinite(made.head.weight).all()


@pytest.mark.parametrize("work", [predict, embed, outside_auroc, fit_head])
def test_parts_change_an_evaluation_by_rounding_alone(examples: Examples, work: Callable[..., object]) -> None:
    whole, parts = network(), network()
    expected, found = work(whole, examples, compute=FP32), work(parts, examples, compute=replace(FP32, micro_batch=2))
    if isinstance(expected, np.ndarray):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    torch.testing.assert_close(flat(parts), flat(whole), rtol=1e-4, atol=1e-4)


def test_memory_that_runs_out_while_training_is_refused(examples: Examples) -> None:
    made = network()

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    made.backbone.register_forward_pre_hook(fail)
    with pytest.raises(Refusal) as caught:
        train(made, examples, SETTINGS, EPOCHS, seed=3)
    assert caught.value.code == "E_COMPUTE_MEMORY" and "micro_batch" in caught.value.remedy


def test_a_missing_scan_is_reported_through_the_thread_that_reads_ahead(examples: Examples, tmp_path: Path) -> None:
    lost = Examples([*examples.examples, Example(tmp_path / "gone.npy", 60.0, "F", True, True)])
    with pytest.raises(Refusal, match="E_COHORT_FILE"):
        train(network(), lost, SETTINGS, EPOCHS, seed=3, compute=replace(FP32, prefetch=2))
