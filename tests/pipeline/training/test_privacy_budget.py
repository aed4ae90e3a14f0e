"""Tests of the privacy budget: ε is correct, it is recorded before training starts, and the site's limit holds."""

import itertools
import json
import math
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from opacus.accountants import PRVAccountant, RDPAccountant
from pydantic import ValidationError
from scipy.stats import norm

from models.network import build_network
from models.network_settings import NetworkSettings
from models.refusal import Refusal
from pipeline.site.folder import Site, init_site
from pipeline.training import privacy_budget
from pipeline.training.privacy_budget import (
    FORMAT,
    ORDERS,
    PrivacySettings,
    PrivateRound,
    charge_missing,
    check_and_spend,
    epsilon_of,
    spent_epsilon,
    step_costs,
)

ROUND = PrivateRound(noise_multiplier=2.0, sample_rate=0.1, steps=20, delta=1e-5)
OTHER = PrivateRound(noise_multiplier=1.1, sample_rate=0.05, steps=40, delta=1e-5)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run Opacus in this process instead of a separate one, which takes seconds."""

    def run(command: list[str], **_: object) -> SimpleNamespace:
        return SimpleNamespace(stdout=json.dumps(step_costs(float(command[-2]), float(command[-1])).tolist()))

    monkeypatch.setattr(privacy_budget.subprocess, "run", run)


@pytest.fixture
def site(quick: None, tmp_path: Path) -> Site:
    return make(tmp_path)


def make(folder: Path) -> Site:
    settings = '[site]\nname = "a"\n[labels]\nfile = "labels.csv"\n[privacy]\nmax_epsilon = 90\n'
    return init_site(folder / "site", settings)


def opacus(delta: float, *rounds: PrivateRound, orders: list[float] | None = None) -> float:
    """ε from Opacus's own accountant, with its own list of orders if none is given."""
    accountant = RDPAccountant()
    accountant.history = [(r.noise_multiplier, r.sample_rate, r.steps) for r in rounds]
    return accountant.get_epsilon(delta, orders)


def refused(site: Site, planned: PrivateRound = ROUND, run: str = "a") -> Refusal:
    with pytest.raises(Refusal) as caught:
        check_and_spend(site, planned, run=run)
    return caught.value


# --- accounting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("rate", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("steps", [1, 400])
def test_epsilon_equals_opacus(noise: float, rate: float, steps: int) -> None:
    found, planned = epsilon_of(steps * step_costs(noise, rate), 1e-5), PrivateRound(noise, rate, steps, 1e-5)
    assert found == pytest.approx(opacus(1e-5, planned, orders=ORDERS.tolist()), rel=1e-9)
    # We use two orders more than the default of Opacus. This can only lower ε, and does so where ε is very small.
    by_itself = opacus(1e-5, planned)
    assert found <= by_itself * (1 + 1e-9)
    assert found == pytest.approx(by_itself, rel=0.01) or by_itself < 0.3


def test_epsilon_is_never_below_the_exact_value() -> None:
    """Without sampling, the exact δ of an ε is known (Balle & Wang 2018, theorem 8)."""
    for noise, steps in ((1.0, 1), (4.0, 10), (20.0, 400)):
        epsilon, mu = epsilon_of(steps * step_costs(noise, 1.0), 1e-5), math.sqrt(steps) / noise

        def delta(e: float, mu: float = mu) -> float:
            return float(norm.cdf(mu / 2 - e / mu) - math.exp(e) * norm.cdf(-mu / 2 - e / mu))

        assert delta(epsilon) <= 1e-5 < delta(0.8 * epsilon), "a tight upper bound"


def test_epsilon_is_close_to_a_tighter_accountant() -> None:
    """Opacus's accountant of privacy loss distributions does not use Rényi divergences, so it is independent."""
    tighter = PRVAccountant()
    tighter.history = [(1.0, 0.1, 400)]
    exact = tighter.get_epsilon(1e-5, eps_error=0.05)
    assert 0.98 * exact < epsilon_of(400 * step_costs(1.0, 0.1), 1e-5) < 1.2 * exact


def test_more_steps_less_noise_or_smaller_delta_cost_more() -> None:
    base = epsilon_of(400 * step_costs(1.5, 0.1), 1e-4)
    assert epsilon_of(500 * step_costs(1.5, 0.1), 1e-4) > base
    assert epsilon_of(400 * step_costs(1.4, 0.1), 1e-4) > base
    assert epsilon_of(400 * step_costs(1.5, 0.2), 1e-4) > base
    assert epsilon_of(400 * step_costs(1.5, 0.1), 1e-5) > base
    assert epsilon_of(np.zeros(len(ORDERS)), 1e-5) == 0


# --- the documentation ------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[3] / "docs" / "differential-privacy.md"
STEPS, RATE = 400, 0.1  # 20 rounds of 2 epochs


def table_rows(first_column: str) -> list[list[float]]:
    """The rows of the table on the page that begins with this column."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    return [[float(cell) for cell in row.strip("|").split("|")] for row in rows]


def weights(**network: object) -> int:
    made = build_network(NetworkSettings.model_validate({"norm": "group", **network}), seed=1)
    return sum(parameter.numel() for parameter in made.parameters())


def test_page_lists_the_least_noise_for_each_epsilon() -> None:
    rows = table_rows("patients N")
    assert [row[0] for row in rows] == [100, 300, 1000]
    for patients, delta, *noises, length in rows:
        assert delta == pytest.approx(1 / (10 * patients), rel=1e-2)
        for noise, epsilon in zip(noises, (1, 3, 8), strict=True):
            assert epsilon_of(STEPS * step_costs(noise, RATE), 1 / (10 * patients)) <= epsilon
            assert epsilon_of(STEPS * step_costs(noise - 0.02, RATE), 1 / (10 * patients)) > epsilon
        assert length == pytest.approx(noises[2] * math.sqrt(weights()) / (RATE * patients), abs=0.5)
    assert math.sqrt(weights() / weights(architecture="resnet10", widen_factor=1 / 16)) == pytest.approx(6, abs=0.1)


def test_page_states_the_effect_of_noise_on_a_hospitals_update() -> None:
    rows = table_rows("hospitals n")
    assert [row[0] for row in rows] == [5, 10, 20]
    for hospitals, noise, length in rows:
        assert epsilon_of(20 * step_costs(noise, 1.0), 1 / (10 * hospitals)) <= 8
        assert epsilon_of(20 * step_costs(noise - 0.02, 1.0), 1 / (10 * hospitals)) > 8
        assert length == pytest.approx(noise * math.sqrt(weights()) / hospitals, abs=0.5)


def test_page_states_the_membership_inference_bound_of_each_epsilon() -> None:
    """(ε, 0)-privacy bounds the ROC curve by two lines (Kairouz et al. 2015); this is the area under that bound."""
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    bounds = [f"{1 - 1 / (1 + math.exp(epsilon)):.2f}" for epsilon in (8, 3, 1)]
    assert "{} for ε = 8, {} for 3 and {} for 1".format(*bounds) in text


# --- the budget file --------------------------------------------------------------------------------------


def test_rounds_add_up_over_runs_and_restarts(site: Site) -> None:
    first = check_and_spend(site, ROUND, run="a")
    again = check_and_spend(site, ROUND, run="a")
    assert first == pytest.approx(opacus(1e-5, ROUND), rel=0.01)
    assert again == pytest.approx(opacus(1e-5, ROUND, ROUND), rel=0.01)
    reopened = Site.open(site.folder)
    other = check_and_spend(reopened, OTHER, run="b")
    assert other == pytest.approx(opacus(1e-5, OTHER), rel=0.01), "ε of that run only"
    assert spent_epsilon(reopened, delta=1e-5, run="a") == again
    everything = spent_epsilon(reopened, delta=1e-4)
    assert everything == pytest.approx(opacus(1e-4, ROUND, ROUND, OTHER), rel=0.01)


def test_rounds_that_another_record_names_are_charged_once(site: Site) -> None:
    """The budget was restored from a backup of before the second round, and lost the run b."""
    check_and_spend(site, ROUND, run="a")
    charges = {("a", 2.0, 0.1, 20): 2, ("b", 1.1, 0.05, 40): 1}
    assert charge_missing(site, charges) == 2
    assert (
        charge_missing(site, charges) == charge_missing(site, {("a", 2.0, 0.1, 20): 1}) == charge_missing(site, {}) == 0
    )
    assert spent_epsilon(site, delta=1e-4) == pytest.approx(opacus(1e-4, ROUND, ROUND, OTHER), rel=0.01)


def test_round_beyond_the_budget_is_refused_and_not_charged(site: Site) -> None:
    delta = site.settings.privacy.max_delta
    site.settings.privacy.max_epsilon = opacus(delta, ROUND, ROUND, ROUND) + 0.01
    for _ in range(3):
        check_and_spend(site, ROUND, run="a")
    spent = spent_epsilon(site, delta=delta)
    refusal = refused(site, run="another")
    assert refusal.code == "E_PRIVACY_BUDGET"
    assert "another" not in str(refusal)
    assert spent_epsilon(site, delta=delta) == spent
    assert refused(Site.open(site.folder), replace(ROUND, steps=10**6)).code == "E_PRIVACY_BUDGET"
    # A round that still fits may run: one step with much noise.
    check_and_spend(site, PrivateRound(100.0, 0.001, 1, 1e-5), run="a")


def test_killed_process_is_charged_for_the_planned_round(site: Site) -> None:
    once = check_and_spend(site, ROUND, run="a")
    code = (
        "import os, sys; from pathlib import Path; from pipeline.site.folder import Site;"
        "from pipeline.training.privacy_budget import PrivateRound, check_and_spend;"
        f"check_and_spend(Site.open(Path(sys.argv[1])), {ROUND!r}, run='a'); os.kill(os.getpid(), 9)"
    )
    died = subprocess.Popen([sys.executable, "-c", code, str(site.folder)])
    assert died.wait(timeout=300) == -signal.SIGKILL
    assert spent_epsilon(site, delta=1e-5, run="a") == pytest.approx(opacus(1e-5, ROUND, ROUND), rel=0.01)
    assert spent_epsilon(site, delta=1e-5, run="a") > once


def test_concurrent_rounds_do_not_exceed_the_budget(site: Site) -> None:
    fits = 5
    site.settings.privacy.max_epsilon = opacus(site.settings.privacy.max_delta, *[ROUND] * fits) + 0.01

    def try_it(_: int) -> bool:
        try:
            check_and_spend(site, ROUND, run="a")
        except Refusal as refusal:
            assert refusal.code == "E_PRIVACY_BUDGET"
            return False
        return True

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(try_it, range(12))) == fits


def test_check_reports_the_spent_budget(site: Site) -> None:
    assert privacy_budget.line(site).exactly.endswith("ε = 0.00 of 90 is spent, at δ = 0.0001")
    assert not (site.folder / "privacy").exists(), "a check spends nothing and creates no file"
    check_and_spend(site, ROUND, run="a")
    assert f"ε = {spent_epsilon(site, delta=1e-4):.2f} of 90" in privacy_budget.line(site).exactly
    (site.folder / "privacy" / "budget.sqlite").write_bytes(b"nonsense" * 1000)
    assert privacy_budget.line(site).status == "fail"


def test_only_the_owner_can_read_the_budget(site: Site) -> None:
    check_and_spend(site, ROUND, run="a")
    assert (site.folder / "privacy").stat().st_mode & 0o777 == 0o700


def _overwrite(file: Path) -> None:
    file.write_bytes(b"nonsense" * 1000)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])


def _cost_missing(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("DELETE FROM step_costs WHERE noise_multiplier < 2")


def _cost_spoilt(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("UPDATE step_costs SET rdp = '[0.0]' WHERE noise_multiplier < 2")


@pytest.mark.parametrize("damage", [_overwrite, _cut, _cost_missing, _cost_spoilt])
def test_damaged_budget_file_refuses_every_round(site: Site, damage: Callable[[Path], None]) -> None:
    check_and_spend(site, ROUND, run="a")
    check_and_spend(site, OTHER, run="a")
    damage(site.folder / "privacy" / "budget.sqlite")
    refusal = refused(site)
    assert refusal.code == "E_PRIVACY_FILE"
    assert str(site.folder) not in str(refusal)


def test_budget_file_of_a_newer_version_refuses_every_round(site: Site) -> None:
    check_and_spend(site, ROUND, run="a")
    with sqlite3.connect(site.folder / "privacy" / "budget.sqlite") as database:
        assert database.execute("PRAGMA user_version").fetchone() == (FORMAT.version,)
        database.execute("PRAGMA user_version = 7")
    assert refused(site).code == "E_FORMAT_NEWER"


def test_folder_without_write_access_refuses_every_round(site: Site) -> None:
    (site.folder / "privacy").write_text("in the way")
    assert refused(site).code == "E_PRIVACY_FILE"


@pytest.mark.parametrize(
    "answer", ["", "[1.0]", "null", json.dumps([math.nan] * len(ORDERS)), json.dumps([0.0] * len(ORDERS))]
)
def test_invalid_cost_refuses_the_round(site: Site, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy_budget.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=answer))
    assert refused(site).code == "E_PRIVACY_SETTINGS"
    assert spent_epsilon(site, delta=1e-5) == 0


@pytest.mark.slow
def test_cost_is_computed_in_a_separate_process(tmp_path: Path) -> None:
    """So the process that keeps the account does not import torch."""
    site = make(tmp_path)
    code = (
        "import sys; from pathlib import Path; from pipeline.site.folder import Site;"
        "from pipeline.training.privacy_budget import PrivateRound, check_and_spend;"
        f"print(check_and_spend(Site.open(Path(sys.argv[1])), {ROUND!r}, run='a'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(site.folder)], capture_output=True, text=True, check=True)
    epsilon, torch_is_there = done.stdout.split()
    assert float(epsilon) == pytest.approx(opacus(1e-5, ROUND), rel=0.01)
    assert torch_is_there == "False"


# --- settings ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_allowed_setting_has_a_cost() -> None:
    for noise in (0.3, 1.0, 100.0):
        for rate in (0.001, 0.01, 0.5, 1.0):
            PrivacySettings(noise_multiplier=noise, sample_rate=rate)
            costs = step_costs(noise, rate)
            assert costs.shape == ORDERS.shape
            assert np.isfinite(costs).all() and (costs > 0).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_multiplier": 0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"sample_rate": 0},
        {"sample_rate": 1.1},
        {"max_grad_norm": 0},
        {"max_grad_norm": math.inf},
        {"delta": 0},
        {"delta": 0.1},
        {"epsilon": 8},
    ],
    ids=str,
)
def test_settings_without_protection_are_refused(wrong: dict[str, float]) -> None:
    PrivacySettings.model_validate({"noise_multiplier": 1, "sample_rate": 0.1})
    with pytest.raises(ValidationError):
        PrivacySettings.model_validate({"noise_multiplier": 1, "sample_rate": 0.1, **wrong})


def test_epoch_draws_each_patient_once_on_average() -> None:
    for rate, steps in ((1.0, 1), (0.1, 10), (0.3, 3), (0.001, 1000)):
        assert PrivacySettings(noise_multiplier=1, sample_rate=rate).steps_an_epoch == steps
