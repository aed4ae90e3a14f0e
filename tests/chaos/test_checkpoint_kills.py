"""F6 with real kills: a hundred processes are killed while they write checkpoints."""

import os
import random
import signal
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from federation.strategy.checkpoint import State, load_latest, save

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]
KILLS = 100


def state(number: int) -> State:
    """Return a state of 4 MB in which every weight is the round number."""
    weights = np.full(1_000_000, number, np.float32)
    return State(round=number, arrays={"weights": weights}, buffers={}, memory={}, history=[], about={})


def test_f6_killed_writer_never_leaves_a_damaged_checkpoint(tmp_path: Path):
    draw = random.Random(6)
    began = time.monotonic()
    save(tmp_path, state(1))
    one_save_s = time.monotonic() - began
    interrupted = 0
    for _ in range(KILLS):
        last = load_latest(tmp_path).state.round
        child = os.fork()
        if child == 0:
            for number in count(last + 1):
                save(tmp_path, state(number))
        time.sleep(draw.uniform(0, 3 * one_save_s))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        interrupted += any(tmp_path.glob("*.tmp"))
        loaded = load_latest(tmp_path)
        assert loaded.damaged_rounds == ()
        assert loaded.state.round >= last
        assert (loaded.state.arrays["weights"] == loaded.state.round).all()
    assert load_latest(tmp_path).state.round > KILLS / 4  # the processes did write checkpoints
    assert interrupted > KILLS / 10  # and many were killed during a write
