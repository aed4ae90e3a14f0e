"""Tests that a SuperNode's process ends with its main loop, whatever threads it still has."""

import subprocess
import sys

import pytest

from federation.flower.log_lines import LOOP_ENDED

# In place of Flower's program: one that starts a thread without end and then does what the test says.
PROGRAM = """
import sys, threading, types

def flower_supernode():
    threading.Thread(target=threading.Event().wait).start()
    {end}

cli = types.ModuleType("flwr.supernode.cli")
cli.flower_supernode = flower_supernode
sys.modules.update({{"flwr": cli, "flwr.supernode": cli, "flwr.supernode.cli": cli}})
from federation.flower.supernode_program import run_supernode
run_supernode()
"""


@pytest.mark.parametrize(
    ("end", "code", "says"),
    [
        ("return", 1, LOOP_ENDED),
        ("raise KeyboardInterrupt", 1, "KeyboardInterrupt"),  # a second signal while Flower ends
        ("raise ValueError('a part is missing')", 1, "a part is missing"),
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
    ],
)
def test_process_ends_although_a_thread_goes_on(end: str, code: int, says: str) -> None:
    command = [sys.executable, "-c", PROGRAM.format(end=end)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert says in done.stdout + done.stderr
