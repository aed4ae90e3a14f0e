"""A private study in half precision: each site spends its privacy budget and refuses beyond it. Synthetic data."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from federation.system.process import free_port
from models.release import CARD, load_release
from pipeline.training.privacy_budget import PrivateRound, epsilon_of, step_costs
from tests.e2e.conftest import Command, allow, enter, ok, run_command, wait_online
from tests.e2e.test_federation import STUDY

pytestmark = pytest.mark.e2e

ROUNDS = 2
PRIVACY = """norm = "group"

[training]
learning_rate = 0.001

[privacy]
noise_multiplier = 4.0
sample_rate = 0.2

[wire]
precision = "float16"
"""
ROUND = PrivateRound(noise_multiplier=4.0, sample_rate=0.2, steps=5, delta=1e-5)


def epsilon(rounds: int, delta: float) -> float:
    return epsilon_of(rounds * ROUND.steps * step_costs(ROUND.noise_multiplier, ROUND.sample_rate), delta)


def test_private_study_ends_at_each_site_when_its_budget_is_spent(
    two_sites: Path, tmp_path: Path, start: Callable[..., Command]
) -> None:
    """One site has budget for two rounds, the other for one. The study continues with the first site."""
    server, sites = tmp_path / "server", tmp_path / "sites"
    shutil.copytree(two_sites, sites)
    study = tmp_path / "study.toml"
    text = STUDY.replace("sites = 3", "sites = 2").replace("quorum = 2", "quorum = 1")
    study.write_text(text.replace("rounds = 4", f"rounds = {ROUNDS}") + PRIVACY)
    ok("server", "init", server, "--port", str(free_port()))
    start("server", "start", server).wait_for("The server is up", seconds=300)
    for name, budget in (("north", 8.0), ("south", epsilon(1, 1e-4) + 0.01)):
        with (sites / name / "site.toml").open("a") as settings:
            settings.write(f"\n[privacy]\nrequired = true\nmax_epsilon = {budget}\n")
        enter(sites / name, server, name)
        allow(sites / name, study)
    wait_online([start("node", "start", sites / name) for name in ("north", "south")])
    done = run_command("study", "run", study, "--server", server, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "south: E_PRIVACY_BUDGET" in done.stderr

    folder = Path(json.loads(done.stdout)["release"])
    privacy = load_release(folder).description.privacy
    assert privacy is not None
    paid = {"north": epsilon(ROUNDS, ROUND.delta), "south": epsilon(1, ROUND.delta)}
    assert privacy.epsilon == pytest.approx(paid, rel=1e-6)
    card = (folder / CARD).read_text(encoding="utf-8")
    assert all(f"| {site} | {value:.2f} |" in card for site, value in paid.items())
    for name, rounds in (("north", ROUNDS), ("south", 1)):
        with sqlite3.connect(sites / name / "privacy" / "budget.sqlite") as database:
            assert database.execute("SELECT COUNT(*), SUM(steps) FROM rounds").fetchone() == (rounds, 5 * rounds)
