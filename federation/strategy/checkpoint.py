"""Checkpoints of a study: one file per round, always complete, even if the process is killed.

A file is safetensors (tensors, and text for the rest; never pickle). Its name holds the round and the file's SHA-256.
It is written under a temporary name, flushed to disk and renamed, so that the final name always means a complete file.
Later damage is detected by the hash; then the previous checkpoint is used.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from federation.strategy import reasons
from models.refusal import Refusal
from pipeline.system.atomic_files import write_durably
from pipeline.system.reasons import FORMAT_NEWER

log = logging.getLogger(__name__)

KEEP = 3
# The name of the text in the file is its format: "state" is the first, and the next one would be "state-2". A second
# text would not do: safetensors writes several in random order, and the file's name is its hash.
FORMAT = "state"
_NAME = re.compile(r"round-(\d{6})-([0-9a-f]{64})\.safetensors")
_GROUPS = ("arrays", "buffers", "memory", "accepted")


@dataclass(frozen=True)
class State:
    """Everything that a study needs to continue after `round`.

    `arrays`: the trainable tensors. `buffers`: the batch-norm buffers. `memory`: the strategy's state (see
    `flower_strategies`). `history`: the report of each round so far. `about`: the study. Both are plain JSON.
    `accepted`: the last model that the hospitals accepted, if they judge the models (`coordinator.accepted_model`).
    """

    round: int
    arrays: Mapping[str, NDArray]
    buffers: Mapping[str, NDArray]
    memory: Mapping[str, NDArray]
    history: Sequence[Mapping[str, Any]]
    about: Mapping[str, str]
    accepted: Mapping[str, NDArray] = field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
    """The newest intact checkpoint, and the rounds of newer ones that are damaged."""

    state: State
    damaged_rounds: tuple[int, ...]


def save(folder: Path, state: State) -> Path:
    """Write a checkpoint, make it the latest, and remove all but the last three.

    Raises `Refusal` E_CHECKPOINT_WRITE (disk full, no permission); earlier checkpoints are then unchanged.
    """
    data = _pack(state)
    final = folder / f"round-{state.round:06d}-{hashlib.sha256(data).hexdigest()}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("*.tmp"):  # left by a process that was killed while writing
            stale.unlink()
        write_durably(final, data)
        _prune(folder, final)
    except OSError as error:
        raise Refusal(reasons.CHECKPOINT_WRITE, private=str(error)) from error
    return final


def load_latest(folder: Path) -> Loaded:
    """Load the newest checkpoint whose hash is right; damaged ones are skipped, logged and listed.

    Raises `Refusal`: E_CHECKPOINT_NONE (none exists), E_CHECKPOINT_DAMAGED (none is intact), E_FORMAT_NEWER (the newest
    intact one was written by a newer version).
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
        log.warning("the checkpoint of round %d is damaged; trying the previous one", number)
        damaged.append(number)
    raise Refusal(reasons.CHECKPOINT_DAMAGED, count=len(files))


def _pack(state: State) -> bytes:
    # In C order: safetensors writes the bytes in memory order, so another order would be read back wrongly.
    tensors = {
        f"{group}/{name}": np.asarray(array, order="C")
        for group in _GROUPS
        for name, array in getattr(state, group).items()
    }
    text = {"round": state.round, "history": list(state.history), "about": dict(state.about)}
    return safetensors.numpy.save(tensors, {FORMAT: json.dumps(text, sort_keys=True)})


def _unpack(data: bytes) -> State:
    # The format: 8 bytes little-endian length, then a JSON header of that length (safetensors, "Format").
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    written = header["__metadata__"]
    if FORMAT not in written:  # its hash is right: it is not damaged, and an older checkpoint must not replace it
        raise Refusal(FORMAT_NEWER, file="the checkpoint", found=next(iter(written), "unknown")[:20], known=FORMAT)
    groups: dict[str, Any] = {group: {} for group in _GROUPS}
    for full_name, array in safetensors.numpy.load(data).items():
        group, _, name = full_name.partition("/")
        groups[group][name] = array
    text: dict[str, Any] = json.loads(written[FORMAT])
    return State(**groups, **text)


def _prune(folder: Path, latest: Path) -> None:
    """Keep `latest` and the checkpoints of the rounds just before it.

    Other files of its round or of later rounds are damaged: they were skipped when the study continued from an
    earlier round.
    """
    number, _ = _identity(latest)
    before = [path for path in _newest_first(folder) if _identity(path)[0] < number]
    for path in set(_newest_first(folder)) - {latest, *before[: KEEP - 1]}:
        path.unlink()


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("round-*") if _NAME.fullmatch(path.name)), reverse=True)


def _identity(path: Path) -> tuple[int, str]:
    """Return the round and the SHA-256 in a checkpoint's name."""
    match = _NAME.fullmatch(path.name)
    assert match
    return int(match[1]), match[2]
