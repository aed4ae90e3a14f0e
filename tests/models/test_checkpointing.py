"""Checkpoints save memory and change no bit; batch norm counts each batch once."""

import copy

import pytest
import torch
from torch import Tensor, nn

from models.checkpointing import checkpointed, has_batch_norm, uncounted
from models.loss import masked_bce
from models.network import SeverityNetwork, build_network
from models.network_settings import NetworkSettings

ARCHITECTURES = ("resnet10", "resnet18_slices", "densenet121", "seresnet50", "efficientnet_b0_slices", "convnext")


def network(architecture: str = "resnet10", norm: str = "batch") -> SeverityNetwork:
    settings = {"architecture": architecture, "widen_factor": 0.0625, "norm": norm}
    return build_network(NetworkSettings.model_validate(settings), seed=1).train()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(2)
    return torch.randn(2, 2, 8, 16, 16, generator=draws), torch.zeros(2, 4), torch.tensor([[0.0, 1], [1, 0]])


def backward(trained: nn.Module) -> dict[str, Tensor]:
    """Everything that a backward pass leaves: gradients, running statistics, counts."""
    scans, tabular, targets = batch()
    masked_bce(trained(scans, tabular), targets).backward()
    gradients = {name: weight.grad for name, weight in trained.named_parameters() if weight.grad is not None}
    return {**gradients, **dict(trained.named_buffers())}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_checkpoints_change_no_bit(architecture: str, norm: str) -> None:
    plain = network(architecture, norm)
    saving = copy.deepcopy(plain)
    expected = backward(plain)
    with checkpointed(saving):
        found = backward(saving)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_no_built_in_network_draws_random_numbers(architecture: str, norm: str) -> None:
    """A checkpoint computes a stage twice, and training seeds no generator for the layers."""
    trained = network(architecture, norm)
    scans, tabular, _ = batch()
    before = torch.get_rng_state()
    with torch.no_grad():
        first, again = (trained(scans, tabular) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fewer_activations_are_kept(architecture: str) -> None:
    def kept(trained: SeverityNetwork) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        scans, tabular, _ = batch()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trained(scans, tabular)
        return sum(sizes.values())

    trained = network(architecture)
    plain = kept(trained)
    with checkpointed(trained):
        assert kept(trained) < 0.8 * plain
    assert kept(trained) == plain, "the network is an ordinary one again"


def test_uncounted_batches_leave_no_trace() -> None:
    trained = network()
    before = {name: buffer.clone() for name, buffer in trained.named_buffers()}
    scans, tabular, _ = batch()
    with uncounted(trained):
        quiet = trained(scans, tabular)
    assert all(torch.equal(buffer, before[name]) for name, buffer in trained.named_buffers())
    assert torch.equal(trained(scans, tabular), quiet), "the batch itself normalises in both cases"
    counts = [int(buffer) for name, buffer in trained.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts and set(counts) == {1}


def test_batch_norm_is_recognised() -> None:
    assert has_batch_norm(network()) and not has_batch_norm(network(norm="group"))
