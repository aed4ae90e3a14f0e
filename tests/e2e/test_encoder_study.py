"""Hospitals learn a head on a frozen encoder: real processes, the settings of docs/encoders.md, synthetic data."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from federation.system.process import free_port
from models.network import build_network
from models.network_settings import NetworkSettings
from models.release import load_release, save_release
from tests.e2e.conftest import Command, allow, enter, ok, run_command, wait_online
from tests.helpers.descriptions import description
from tests.helpers.pages import settings_under

pytestmark = pytest.mark.e2e


def study_of_the_page(lines: str) -> str:
    """The study of docs/encoders.md whose head equals the pooled one, for two rounds, with the encoder's lines."""
    text = settings_under("A head that equals the pooled one", page="encoders.md").replace("rounds = 60", "rounds = 2")
    head = '[study]\nname = "head"\nsites = 2\nquorum = 2\nwait_s = 90\nround_timeout_s = 120\nsynthetic = true\n'
    network = lines.replace("[training]\naugment = false\n", "")
    return network + text.replace("[study]\n", head).replace("[training]\n", "[training]\naugment = false\n")


@pytest.mark.further
def test_hospitals_learn_the_head_of_the_page_within_their_usual_limits(
    two_sites: Path, tmp_path: Path, start: Callable[..., Command]
) -> None:
    server, sites, encoder = tmp_path / "server", tmp_path / "sites", tmp_path / "encoder"
    shutil.copytree(two_sites, sites)
    save_release(tmp_path / "first", build_network(NetworkSettings(), seed=1), description())
    ok("study", "make-encoder", tmp_path / "first", encoder, "--name", "first", "--licence", "Apache-2.0")
    study = tmp_path / "study.toml"
    study.write_text(study_of_the_page(ok("study", "encoder", encoder)))
    ok("server", "init", server, "--port", str(free_port()))
    start("server", "start", server).wait_for("The server is up", seconds=300)
    for name in ("north", "south"):
        site = sites / name
        settings = (site / "site.toml").read_text()
        assert "min_local_steps = 1\n" in settings, "the tests' hospitals allow a round of one step, others do not"
        (site / "site.toml").write_text(settings.replace("min_local_steps = 1\n", "require_augmentation = false\n"))
        enter(site, server, name)
        ok("node", "approve-encoder", site, encoder, "--yes")
        ok("node", "encode", site)
        allow(site, study)
    wait_online([start("node", "start", sites / name) for name in ("north", "south")])

    done = run_command("study", "run", study, "--server", server, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert load_release(Path(result["release"])).description.rounds == 2
