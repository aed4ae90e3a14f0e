"""Tests of fitting the head to one hospital: only the head changes, and a penalty limits the change."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.network import SeverityNetwork, build_network
from models.network_settings import NetworkSettings
from pipeline.cohort.dataset import Example, Examples
from pipeline.training.head_finetune import fit_head

SETTINGS = NetworkSettings(architecture="resnet10", widen_factor=0.0625)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    folder, rng, made = tmp_path_factory.mktemp("tensors"), np.random.default_rng(3), []
    for number in range(24):
        severe = number % 2 == 0
        path = folder / f"{number}.npy"
        np.save(path, rng.normal(0.8 * severe, 1, (2, 16, 16, 16)).astype(np.float16))
        made.append(Example(path, 50.0, "F", True, severe, None))
    return Examples(made)


def fitted(examples: Examples, **options: float) -> tuple[SeverityNetwork, SeverityNetwork]:
    before, after = build_network(SETTINGS, seed=1), build_network(SETTINGS, seed=1)
    fit_head(after, examples, **options)
    return before, after


def moved(before: SeverityNetwork, after: SeverityNetwork) -> float:
    return float((after.head.weight - before.head.weight).detach().norm())


def test_only_the_head_changes(examples: Examples) -> None:
    before, after = fitted(examples)
    changed = {n for n, tensor in before.state_dict().items() if not torch.equal(tensor, after.state_dict()[n])}
    assert changed == {"head.weight", "head.bias"}


def test_strong_penalty_keeps_the_head_unchanged(examples: Examples) -> None:
    assert moved(*fitted(examples, penalty=1e6)) < 0.01 * moved(*fitted(examples, penalty=0.1))


def test_order_of_patients_does_not_matter(examples: Examples) -> None:
    _, first = fitted(examples)
    _, second = fitted(Examples(examples.examples[::-1]))
    assert torch.allclose(first.head.weight, second.head.weight, atol=1e-3)


def test_label_without_values_changes_nothing(examples: Examples, tmp_path: Path) -> None:
    unknown = Examples([replace(example, pcr_positive=None) for example in examples.examples])
    before, after = fitted(unknown)
    assert torch.allclose(before.head.weight[0], after.head.weight[0], atol=1e-6)
    assert not torch.allclose(before.head.weight[1], after.head.weight[1], atol=1e-3)
