"""The tutorial docs/own-networks.md with real processes: its package, a server, two hospitals. Synthetic data."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from federation.system.process import free_port
from models.network_settings import TABULAR
from models.own_packages import Kind
from models.release import load_release
from tests.e2e.conftest import Command, allow, enter, ok, run_command, wait_online
from tests.e2e.test_federation import STUDY
from tests.helpers.own_package import write_package

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
PAGE = Path(__file__).parents[2] / "docs" / "own-networks.md"


def package_of_tutorial(folder: Path) -> Path:
    """Install the package of the page into a folder, with the entry point of its pyproject.toml."""
    text = PAGE.read_text(encoding="utf-8")
    code, parts_code = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    entries = ("my_networks:wide", "my_networks.parts:focal", "my_networks.parts:dimmed")
    assert all(f'{entry.rpartition(":")[2]} = "{entry}"' in text for entry in entries)
    parts: dict[Kind, tuple[str, ...]] = {"loss": ("focal",), "transform": ("dimmed",)}
    write_package(folder, code=code, networks=("wide",), parts=parts, parts_code=parts_code)
    (folder / "my_networks" / "__init__.py").write_text("from my_networks.nets import wide as wide\n")
    return folder


def lines_of(packages: Path) -> str:
    """The tables of a study that uses all parts of the package."""
    network, loss, transform = (
        ok("study", "network", f"my-networks:{name}", "--from", packages) for name in ("wide", "focal", "dimmed")
    )
    return f'[network]\n{network}pooling = "gated"\n[training]\n{loss}loss_settings = {{ gamma = 1.5 }}\n{transform}'


def test_tutorial_trains_a_network_of_a_package_at_hospitals_that_approved_it(
    two_sites: Path, tmp_path: Path, start: Callable[..., Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, sites, study = tmp_path / "server", tmp_path / "sites", tmp_path / "study.toml"
    shutil.copytree(two_sites, sites)
    packages, received = package_of_tutorial(tmp_path / "packages"), tmp_path / "received"
    shutil.copytree(packages, received)
    table = STUDY
    for old, new in (("sites = 3", "sites = 2"), ("quorum = 2", "quorum = 1"), ("rounds = 4", "rounds = 2")):
        table = table.replace(old, new)
    table = table.replace("round_timeout_s = 120", "round_timeout_s = 400")
    without_audit = "[evaluation]\nshortcut_audit = false\n"  # the simulation below has one
    study.write_text(table[: table.index("[network]")] + lines_of(packages) + without_audit)
    ok("server", "init", server, "--port", str(free_port()))
    start("server", "start", server).wait_for("The server is up", seconds=300)
    for name in ("north", "south"):
        enter(sites / name, server, name)
        allow(sites / name, study)
    shown = ok("node", "approve-network", sites / "north", "my-networks", "--from", received, "--yes")
    for part in ("my-networks:wide", "loss        focal", "transform   dimmed"):
        assert part in shown
    listed = ok("node", "networks", sites / "north")
    for part in ("my-networks", "network wide", "loss focal", "transform dimmed"):
        assert part in listed
    wait_online([start("node", "start", sites / name) for name in ("north", "south")])

    def run(code: int = 0) -> str:
        """Run the study; only the server's side has the package on its path."""
        with monkeypatch.context() as at_server:
            at_server.setenv("PYTHONPATH", str(packages))
            command = start("study", "run", study, "--server", server)
        assert command.wait(seconds=700) == code, command.text()
        return command.text()

    alone = run()
    assert "south: E_NETWORK_REFUSED" in alone
    assert "round 2 of 2 · 1 of" in alone

    # The server's package changes: nothing is sent. The hospital's copy changes: the approved bytes still run.
    changed = packages / "my_networks" / "nets.py"
    text = changed.read_text()
    changed.write_text(text + "\n# another line\n")
    assert "E_NETWORK_UNLIKE" in run(code=1)
    changed.write_text(text)
    ok("node", "approve-network", sites / "south", "my-networks", "--from", received, "--yes")
    (received / "my_networks" / "nets.py").write_text("raise SystemExit('the changed file ran')\n")
    together = run()
    assert "round 2 of 2 · 2 of 2 sites" in together
    assert not re.search(r"\bE_", together)

    (name,) = re.findall(r"run (end-to-end-[0-9a-f]{8}):", together)
    folder = server / "runs" / name / "release"
    scored = run_command("score", tmp_path, "--model", folder, "--json")
    assert json.loads(scored.stdout)["refused"]["code"] == "E_NETWORK_CLOSED"
    monkeypatch.syspath_prepend(str(packages))
    network = load_release(folder, runs_package=True).network
    assert torch.isfinite(network(torch.zeros(1, 2, 40, 56, 56), torch.zeros(1, TABULAR))).all()
    assert "my-networks:wide" in (folder / "card.md").read_text()


@pytest.mark.further
def test_network_of_a_package_runs_in_simulation(
    two_sites: Path, tmp_path: Path, start: Callable[..., Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No hospital approves anything: the machine of the data scientist runs its own package."""
    packages, study = package_of_tutorial(tmp_path / "packages"), tmp_path / "study.toml"
    table = STUDY.replace("sites = 3", "sites = 2").replace("rounds = 4", "rounds = 1")
    study.write_text(table[: table.index("[network]")] + lines_of(packages))
    monkeypatch.setenv("PYTHONPATH", str(packages))
    options = [option for name in ("north", "south") for option in ("--simulate", two_sites / name)]
    run = start("study", "run", study, "--server", tmp_path / "simulation", *options)
    assert run.wait(seconds=700) == 0, run.text()
    assert "round 1 of 1 · 2 of 2 sites" in run.text()
