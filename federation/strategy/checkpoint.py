"""Checkpoints of a study: one file per round, whole or not there at all, whenever the process is killed.

A file is safetensors (tensors, and text for the rest; never pickle) under a name that holds its round and its
SHA-256. It is written under another name, flushed to the disk and renamed, so a name stands only for a
complete file, and damage later on is found by its hash; then the one before is used.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from federation.strategy import reasons
from models.refusal import Refusal
from pipeline.system.atomic_files import write_durably

log = logging.getLogger(__name__)

KEEP = 3
_NAME = re.compile(r"round-(\d{6})-([0-9a-f]{64})\.safetensors")
_GROUPS = ("arrays", "buffers", "memory")


@dataclass(frozen=True)
class State:
    """All that a study needs to go on after `round`.

    `arrays`: the trainable tensors. `buffers`: the batch-norm buffers. `memory`: what the strategy remembers
    (see `flower_strategies`). `history`: what to tell about each round so far, and `about`: the study, both
    as plain JSON.
    """

    round: int
    arrays: Mapping[str, NDArray]
    buffers: Mapping[str, NDArray]
    memory: Mapping[str, NDArray]
    history: Sequence[Mapping[str, Any]]
    about: Mapping[str, str]


@dataclass(frozen=True)
class Loaded:
    """The newest intact checkpoint, and the rounds of those after it that were found damaged."""

    state: State
    damaged_rounds: tuple[int, ...]


def save(folder: Path, state: State) -> Path:
    """Write a checkpoint, make it the latest, and remove all but the last three.

    Raises `Refusal` E_CHECKPOINT_WRITE (disk full, no permission); the checkpoints before are untouched then.
    """
    data = _pack(state)
    final = folder / f"round-{state.round:06d}-{hashlib.sha256(data).hexdigest()}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("*.tmp"):  # left by a process that was killed here
            stale.unlink()
        write_durably(final, data)
        _prune(folder, final)
    except OSError as error:
        raise Refusal(reasons.CHECKPOINT_WRITE, private=str(error)) from error
    return final


def load_latest(folder: Path) -> Loaded:
    """The newest checkpoint whose hash is right; damaged ones are skipped, logged and named.

    Raises `Refusal`: E_CHECKPOINT_NONE (there is none), E_CHECKPOINT_DAMAGED (there are, but none is intact).
    """
    files = _newest_first(folder)
    if not files:
        raise Refusal(reasons.CHECKPOINT_NONE)
    damaged: list[int] = []
    for path in files:
        number, digest = _identity(path)
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == digest:
            return Loaded(_unpack(data), tuple(damaged))
        log.warning("the checkpoint of round %d is damaged; trying the one before", number)
        damaged.append(number)
    raise Refusal(reasons.CHECKPOINT_DAMAGED, count=len(files))


def _pack(state: State) -> bytes:
    # In C order: safetensors writes the bytes as they lie, so another order would come back scrambled.
    tensors = {
        f"{group}/{name}": np.asarray(array, order="C")
        for group in _GROUPS
        for name, array in getattr(state, group).items()
    }
    text = {"round": state.round, "history": list(state.history), "about": dict(state.about)}
    return safetensors.numpy.save(tensors, {"state": json.dumps(text, sort_keys=True)})


def _unpack(data: bytes) -> State:
    # The format: 8 bytes little-endian length, then a JSON header of that length (safetensors, "Format").
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    groups: dict[str, Any] = {group: {} for group in _GROUPS}
    for full_name, array in safetensors.numpy.load(data).items():
        group, _, name = full_name.partition("/")
        groups[group][name] = array
    text: dict[str, Any] = json.loads(header["__metadata__"]["state"])
    return State(**groups, **text)


def _prune(folder: Path, latest: Path) -> None:
    """Keep `latest` and those of the rounds just before it.

    Files of its round or later ones are damaged: they were skipped when the study went on from an earlier
    round.
    """
    number, _ = _identity(latest)
    before = [path for path in _newest_first(folder) if _identity(path)[0] < number]
    for path in set(_newest_first(folder)) - {latest, *before[: KEEP - 1]}:
        path.unlink()


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("round-*") if _NAME.fullmatch(path.name)), reverse=True)


def _identity(path: Path) -> tuple[int, str]:
    """Round and SHA-256 that a checkpoint's name tells."""
    match = _NAME.fullmatch(path.name)
    assert match
    return int(match[1]), match[2]
