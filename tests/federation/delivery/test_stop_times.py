"""What starts our processes gives them at least the time that their stop may take, before it kills them."""

import re
from pathlib import Path

import pytest

from federation.node import sandbox
from federation.system.process import STOP_SECONDS as PROCESS_SECONDS
from federation.system.reaper import KILL_SECONDS
from federation.system.stop_limit import STOP_SECONDS
from pipeline.clinic.background import GRACE_SECONDS as CLINIC_SECONDS
from tests.helpers.containers import DOCS, ROLES, compose_file, pods

# The page ends its requests, and then its threads.
LIMITS = {"server": STOP_SECONDS, "node": STOP_SECONDS, "clinic": 2 * CLINIC_SECONDS}
APP = sandbox.STOP_SECONDS + sandbox.LOOK_SECONDS
UNITS = sorted(path for folder in ("systemd", "systemd-user") for path in (DOCS / folder).glob("*@.service"))


@pytest.mark.parametrize("unit", UNITS, ids=[f"{unit.parent.name}/{unit.name}" for unit in UNITS])
def test_systemd_waits_for_the_stop(unit: Path) -> None:
    text = unit.read_text(encoding="utf-8")
    role = re.fullmatch(r"fedthorax-(\w+)@", unit.stem)
    assert role
    if role[1] == "ingest":  # a command that may be interrupted at any moment
        return
    found = re.search(r"^TimeoutStopSec=(\d+)$", text, re.M)
    assert found
    assert int(found[1]) >= {**LIMITS, "app": APP}.get(role[1], 0)


@pytest.mark.parametrize("role", ROLES)
def test_containers_wait_for_the_stop(role: str) -> None:
    services = compose_file(role)["services"]
    assert int(services[role]["stop_grace_period"].removesuffix("s")) >= LIMITS[role]
    if role == "node":
        assert int(services["app"]["stop_grace_period"].removesuffix("s")) >= APP
    (pod,) = [pod for path, pod in pods(role) if path.name == "deployment.yaml"]
    assert pod["terminationGracePeriodSeconds"] >= LIMITS[role]


def test_limit_leaves_time_for_the_regular_stop() -> None:
    """A node ends two groups of processes one after the other. The limit must not kill what ends by itself."""
    assert STOP_SECONDS > 2 * PROCESS_SECONDS
    assert PROCESS_SECONDS > KILL_SECONDS
