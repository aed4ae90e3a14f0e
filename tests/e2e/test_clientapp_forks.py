"""Processes forked for tasks are independent, with their own arguments and random numbers."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from federation.node.clientapp_forks import PROGRAM

pytestmark = pytest.mark.e2e

# Replaces Flower's program: it records its arguments, draws random numbers, modifies its memory, makes an optimiser.
SERVE = """
import os, random, sys
from pathlib import Path
import numpy, torch
from federation.node import clientapp_forks

folder = Path(sys.argv[1])
memory = []

def program():
    memory.append(sys.argv[2])
    drawn = torch.rand(1).item(), numpy.random.rand(), random.random()
    text = f"{os.getpid()} {os.getppid()} {sys.argv} {memory} {drawn}"
    known = set(sys.modules)
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    (folder / f"{sys.argv[2]}.imports").write_text(str(len(set(sys.modules) - known)))
    (folder / "part").write_text(text)
    (folder / "part").rename(folder / sys.argv[2])

outcome = clientapp_forks.serve(["sh", "-c", sys.argv[2]], folder / "programs")
if isinstance(outcome, list):
    clientapp_forks.run(program, outcome)
else:
    sys.exit(outcome)
"""


# Sends SIGTERM to this process when the command has begun, and before its start has returned.
EARLY = """
import os, signal, subprocess, sys, time

class Popen(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        while not os.path.exists(os.path.join(sys.argv[1], "began")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

subprocess.Popen = Popen
"""
LOOP = "trap 'touch {0}/ended; exit 3' TERM; touch {0}/began; while :; do sleep 0.1; done"


def serving(folder: Path, command: str, before: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", before + SERVE, folder, command])


def test_each_task_runs_in_a_new_process_without_state_of_the_previous_one(tmp_path: Path) -> None:
    wait = "until [ -e {0} ]; do sleep 0.05; done"
    tasks = [f"{PROGRAM} --token {name}; {wait.format(tmp_path / name)}" for name in ("first", "second")]
    with serving(tmp_path, "; ".join([*tasks, "exit 7"])) as warm:
        assert warm.wait(300) == 7
    first, second = ((tmp_path / name).read_text().split(" ", 2) for name in ("first", "second"))
    assert first[0] != second[0]
    assert first[1] == second[1] == str(warm.pid)
    assert first[2].startswith(f"['{PROGRAM}', '--token', 'first'] ['first'] (")
    assert second[2].startswith(f"['{PROGRAM}', '--token', 'second'] ['second'] (")
    drawn = [set(text[2].rpartition("(")[2].rstrip(")").split(", ")) for text in (first, second)]
    assert len(drawn[0]) == 3
    assert not drawn[0] & drawn[1]
    imports = [int((tmp_path / f"{name}.imports").read_text()) for name in ("first", "second")]
    assert imports[1] == 0 < imports[0], "from the second task on, an optimiser needs no import of its own"


def test_sigterm_ends_the_command_before_the_server(tmp_path: Path) -> None:
    with serving(tmp_path, LOOP.format(tmp_path)) as warm:
        deadline = time.monotonic() + 120
        while not (tmp_path / "began").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        warm.send_signal(signal.SIGTERM)
        assert warm.wait(300) == 3
    assert (tmp_path / "ended").exists()


def test_sigterm_during_the_start_ends_the_command_too(tmp_path: Path) -> None:
    """Its parent would end alone, and the command would go on without it."""
    with serving(tmp_path, LOOP.format(tmp_path), EARLY) as warm:
        assert warm.wait(300) == 3
    assert (tmp_path / "ended").exists()
