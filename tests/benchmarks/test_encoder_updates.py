"""The attack on updates of a head finds who took part where it must, and nobody where nothing can be found."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MEMBERS, OTHERS, INPUTS, ROUNDS = 40, 40, 100, 20


@pytest.fixture
def attack(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark: a folder of scripts, not a package."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("encoder_updates")


def patients(attack: ModuleType, count: int, rng: np.random.Generator) -> Any:
    """Return patients whose features are the same around a common mean, and whose labels are drawn at random."""
    inputs = np.column_stack([3 + rng.normal(size=(count, INPUTS)), np.ones(count)])
    return attack.Patients(inputs, rng.integers(2, size=(count, 2)).astype(float))


def rounds(attack: ModuleType, trained: Any, rng: np.random.Generator, *, noise: float) -> list[Any]:
    """Return rounds of one step over some of the patients, from weights of 0."""
    sent, seen = np.zeros((2, INPUTS + 1)), []
    for _ in range(ROUNDS):
        chosen = rng.permutation(len(trained.inputs))[: len(trained.inputs) // 2]
        change = (trained.targets[chosen] - 0.5).T @ trained.inputs[chosen]
        seen.append(attack.Round(sent, change + noise * rng.normal(size=change.shape)))
    return seen


def answers(attack: ModuleType, *, trains: bool, noise: float) -> dict[str, float]:
    """Return the best AUROC of each answer. `trains`: whether the members train, or other patients."""
    rng = np.random.default_rng(1)
    members, others, elsewhere = (patients(attack, count, rng) for count in (MEMBERS, OTHERS, 200))
    trained = members if trains else patients(attack, MEMBERS, rng)
    seen = rounds(attack, trained, rng, noise=noise)
    found = attack.answers(seen, attack.joined([members, others]), MEMBERS, elsewhere)
    return {what: max(by_ridge.values()) for what, by_ridge in found.items()}


def test_who_took_part_is_found(attack: ModuleType) -> None:
    found = answers(attack, trains=True, noise=0)
    assert found[attack.EVERY] > 0.99
    assert found[attack.ONE] > 0.9
    assert found[attack.LABEL] > 0.9


@pytest.mark.parametrize(("trains", "noise"), [(False, 0), (True, 1000)])
def test_nobody_is_found_among_strangers_or_behind_noise(attack: ModuleType, trains: bool, noise: float) -> None:
    found = answers(attack, trains=trains, noise=noise)
    assert max(found[what] for what in (attack.ONE, attack.EVERY, attack.LABEL)) < 0.75
