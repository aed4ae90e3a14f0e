"""A study of 200 rounds with random faults: no round hangs, and memory and open files do not grow.

FEDTHORAX_SOAK_ROUNDS sets another number of rounds.
"""

import os
import random
import time
from pathlib import Path

import pytest

from federation.node.start import SUPERNODE
from federation.server.start import SUPERLINK
from tests.chaos.federation import Federation, finished, kill_member, member

ROUNDS = int(os.environ.get("FEDTHORAX_SOAK_ROUNDS", "200"))
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120 * ROUNDS + 1200)]


def resident_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_f20_long_study_completes_with_random_faults(three: Federation):
    """Kills, bad links and partitions are drawn with a fixed seed.

    The server's processes keep their memory size and their number of open files.
    """
    draw = random.Random(20)
    run = three.run_study(rounds=ROUNDS, wait_s=300, timeout_s=150)
    warm = max(3, ROUNDS // 10)
    run.wait_for(rf"round {warm} of {ROUNDS}", seconds=120 * warm)
    watched = {name: member(three.server, name) for name in (SUPERLINK, "flwr-serverapp", "federation.ingress")}
    before = {name: (resident_kb(pid), open_files(pid)) for name, pid in watched.items() if pid}
    assert set(before) == set(watched)
    while run.process.poll() is None and f"round {ROUNDS - 2} of" not in run.text():
        name = draw.choice(three.names)
        link = three.links[name]
        fault = draw.choice(("kill", "bad line", "partition", "none"))
        if fault == "kill":
            kill_member(three.nodes[name], SUPERNODE)
            three.nodes[name].wait(seconds=60)
            three.start_node(name)
        elif fault == "bad line":
            link.delay_s, link.jitter_s = 0.5, 0.1
            time.sleep(30)
            link.delay_s, link.jitter_s = 0.0, 0.0
        elif fault == "partition":
            link.hold()
            time.sleep(30)
            link.mend(forget=draw.random() < 0.5)
        time.sleep(draw.uniform(5, 40))
    after = {name: (resident_kb(pid), open_files(pid)) for name, pid in watched.items() if pid}
    finished(run, seconds=600)
    assert [entry["round"] for entry in three.rounds(run)] == list(range(1, ROUNDS + 1))
    for name, (memory_kb, files) in after.items():
        assert memory_kb < before[name][0] * 1.05, (name, before[name], after[name])
        assert files <= before[name][1] + 4, (name, before[name], after[name])
