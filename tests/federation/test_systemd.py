"""The systemd units: what systemd itself says of them, and that they start commands which exist."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from federation.cli import app

UNITS = Path(__file__).resolve().parents[2] / "docs" / "systemd"
SERVICES = ("fedthorax-node@.service", "fedthorax-ingest@.service")
EXPOSED_AT_MOST = 15  # of 100; systemd calls up to 20 "OK"


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with the program where it lies in this environment: systemd looks whether it is there."""
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/opt/fedthorax/bin/fedthorax", f"{Path(sys.executable).parent}/fedthorax")
        (tmp_path / unit.name).write_text(text)
    return tmp_path


def hardening(service: str) -> str:
    """The lines that narrow down what a service may do."""
    found = re.search(r"^NoNewPrivileges=.*^SystemCallErrorNumber=\w+$", (UNITS / service).read_text(), re.M | re.S)
    assert found
    return found[0]


def test_systemd_finds_no_fault(units: Path) -> None:
    names = sorted(unit.name for unit in units.iterdir())
    assert names == ["fedthorax-ingest@.service", "fedthorax-ingest@.timer", "fedthorax-node@.service"]
    checked = analyze("verify", *(units / name for name in names))
    assert "fedthorax" not in checked.stderr
    faulty = units / SERVICES[0]
    faulty.write_text(faulty.read_text().replace("ProtectHome=", "ProtectHouse="))
    assert "ProtectHouse" in analyze("verify", faulty).stderr


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_little_exposed(units: Path, service: str) -> None:
    command = ("security", "--offline=true", f"--threshold={EXPOSED_AT_MOST}", "--no-pager", units / service)
    assert analyze(*command).returncode == 0
    bare = units / service
    bare.write_text(bare.read_text().replace(hardening(service), ""))
    assert analyze(*command).returncode == 1


def test_both_services_are_hardened_alike() -> None:
    assert hardening(SERVICES[0]) == hardening(SERVICES[1])


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_starts_a_command_that_exists(service: str) -> None:
    found = re.search(
        r"^ExecStart=/opt/fedthorax/bin/fedthorax (\w+) (\w+) (\S+)$", (UNITS / service).read_text(), re.M
    )
    assert found
    group = typer.main.get_command(app).commands[found[1]]  # type: ignore[attr-defined]
    assert found[2] in group.commands
    assert found[3] == "/var/lib/fedthorax/%i"
