"""The site's privacy budget: the limit on what all studies together may learn about one patient, and its use.

    SITE_DIR/privacy/budget.sqlite   all private rounds, each written before it runs

A round is charged even if it fails: nothing is trained that is not recorded, and a crash loses no record. The
accounting uses Rényi differential privacy (Mironov 2017): a step has a cost at each order of a list, the costs of all
steps, rounds and studies are added, and the sum gives ε at any δ. The budget applies to every patient, because a round
may draw any of them.

Opacus computes the cost of a step and imports torch, for which the gateway has no memory. Therefore a separate process
computes it, once for each noise and sampling rate:

    python -m pipeline.training.privacy_budget NOISE_MULTIPLIER SAMPLE_RATE     the costs of one step, in JSON
"""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from models.refusal import Refusal
from pipeline.site.folder import Site
from pipeline.system.check_line import Line, refused
from pipeline.system.sqlite_format import SqliteFormat, bring_up
from pipeline.training import reasons

# Orders of the Rényi divergence: those of Opacus's accountant, and two for small budgets.
ORDERS = np.array([1 + x / 10 for x in range(1, 100)] + [*range(12, 64), 128, 256], dtype=np.float64)

FILE = "budget.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS step_costs (
    noise_multiplier REAL NOT NULL,
    sample_rate REAL NOT NULL,
    rdp TEXT NOT NULL,             -- JSON: one number for each of ORDERS
    PRIMARY KEY (noise_multiplier, sample_rate)
);
CREATE TABLE IF NOT EXISTS rounds (
    number INTEGER PRIMARY KEY,
    time TEXT NOT NULL,            -- UTC
    run TEXT NOT NULL,
    noise_multiplier REAL NOT NULL,
    sample_rate REAL NOT NULL,
    steps INTEGER NOT NULL
);
"""
FORMAT = SqliteFormat(version=1, schema=_SCHEMA)
_SECONDS = 300.0  # importing torch from a slow disk takes long


class PrivacySettings(BaseModel):
    """Settings of private training; [privacy] of study.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    noise_multiplier: float = Field(ge=0.3, le=100)  # standard deviation of the noise in units of max_grad_norm
    sample_rate: float = Field(ge=0.001, le=1)  # probability with which a step draws a patient
    max_grad_norm: float = Field(default=1.0, gt=0, le=1000)  # maximum norm of one patient's gradient
    delta: float = Field(default=1e-5, gt=0, le=1e-3)  # for which the model's ε is reported

    @property
    def steps_an_epoch(self) -> int:
        """The number of steps that draw each patient once on average."""
        return round(1 / self.sample_rate)


@dataclass(frozen=True)
class PrivateRound:
    """The private part of a round: `steps` of the sampled Gaussian mechanism.

    Each step draws each patient with the probability `sample_rate`, and adds noise whose standard deviation is
    `noise_multiplier` times the maximum contribution of one patient. `delta`: of the study, for its reported ε.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    delta: float


# Run, noise multiplier, sample rate and steps of a charged round.
Charge = tuple[str, float, float, int]


def check_and_spend(site: Site, planned: PrivateRound, *, run: str) -> float:
    """Charge a round of `run` to the site's budget on disk, before it begins.

    Returns ε of all rounds of `run` at this site, including this one, at `planned.delta`. Several processes may call it
    at once. Raises Refusal: E_PRIVACY_BUDGET if all studies together would exceed [privacy] max_epsilon of site.toml,
    and charges nothing then; E_PRIVACY_SETTINGS, E_PRIVACY_FILE.
    """
    limits = site.settings.privacy
    with _database(site) as database:
        _learn_cost(database, planned.noise_multiplier, planned.sample_rate)
        database.execute("BEGIN IMMEDIATE")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        database.execute(
            "INSERT INTO rounds (time, run, noise_multiplier, sample_rate, steps) VALUES (?, ?, ?, ?, ?)",
            (now, run, planned.noise_multiplier, planned.sample_rate, planned.steps),
        )
        total = _epsilon(database, limits.max_delta)
        if not total <= limits.max_epsilon:
            database.execute("ROLLBACK")
            spent = _epsilon(database, limits.max_delta)
            raise Refusal(reasons.PRIVACY_BUDGET, spent=f"{spent:.2f}", asked=f"{total:.2f}", budget=limits.max_epsilon)
        epsilon = _epsilon(database, planned.delta, run)
        database.execute("COMMIT")
    return epsilon


def charge_missing(site: Site, charges: Mapping[Charge, int]) -> int:
    """Charge rounds that another record names and this file lacks, as after a restore; return their number.

    `charges`: how many rounds of each kind were charged. Nothing is refused here: the rounds have taken place. Raises
    Refusal: E_PRIVACY_SETTINGS, E_PRIVACY_FILE.
    """
    if not charges:
        return 0
    added = 0
    with _database(site) as database:
        for (run, noise, rate, steps), count in charges.items():
            row = (run, noise, rate, steps)
            query = "SELECT count(*) FROM rounds WHERE (run, noise_multiplier, sample_rate, steps) = (?, ?, ?, ?)"
            (known,) = database.execute(query, row).fetchone()
            if known < count:
                _learn_cost(database, noise, rate)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            for _ in range(known, count):
                database.execute(
                    "INSERT INTO rounds (time, run, noise_multiplier, sample_rate, steps) VALUES (?, ?, ?, ?, ?)",
                    (now, *row),
                )
                added += 1
    return added


def spent_epsilon(site: Site, *, delta: float, run: str | None = None) -> float:
    """Return ε of all charged rounds of `run`, or of all studies together. Raises Refusal E_PRIVACY_FILE."""
    if not _file(site).exists():
        return 0.0
    with _database(site) as database:
        return _epsilon(database, delta, run)


def line(site: Site) -> Line:
    """Return the line about the budget in `fedthorax node check`."""
    area, name, limits = "configuration", "privacy budget", site.settings.privacy
    try:
        spent = spent_epsilon(site, delta=limits.max_delta)
    except Refusal as refusal:
        return refused(area, name, refusal)
    detail = f"ε = {spent:.2f} of {limits.max_epsilon:g} is spent, at δ = {limits.max_delta:g}"
    return Line(area, name, "ok", "can be read", detail=detail)


def epsilon_of(costs: NDArray[np.float64], delta: float) -> float:
    """Return ε at `delta` for `costs`, one number for each of ORDERS (Balle et al. 2020, theorem 21)."""
    if not costs.any():
        return 0.0
    at_orders = costs - (np.log(delta) + np.log(ORDERS)) / (ORDERS - 1) + np.log1p(-1 / ORDERS)
    return max(0.0, float(at_orders.min()))


def step_costs(noise_multiplier: float, sample_rate: float) -> NDArray[np.float64]:
    """Compute the cost of one step at each of ORDERS with Opacus's accountant (Mironov, Talwar & Zhang 2019)."""
    from opacus.accountants.analysis.rdp import compute_rdp

    costs = compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=ORDERS.tolist())
    return np.asarray(costs, dtype=np.float64)


# --- the file ---------------------------------------------------------------------------------------------


def _file(site: Site) -> Path:
    return site.folder / "privacy" / FILE


@contextmanager
def _database(site: Site) -> Iterator[sqlite3.Connection]:
    """Open the budget, or create it. Errors of SQLite or the disk refuse the round."""
    try:
        _file(site).parent.mkdir(mode=0o700, exist_ok=True)
        database = sqlite3.connect(_file(site), timeout=30, isolation_level=None)
        try:
            database.execute("PRAGMA synchronous = EXTRA")  # COMMIT returns after file and directory are on disk
            bring_up(database, _file(site), FORMAT)
            yield database
        finally:
            database.close()
    except (OSError, sqlite3.Error, ValueError) as error:
        raise Refusal(reasons.PRIVACY_FILE, private=f"{type(error).__name__}: {error}") from error


def _epsilon(database: sqlite3.Connection, delta: float, run: str | None = None) -> float:
    rows = database.execute(
        "SELECT rdp, SUM(steps) FROM rounds LEFT JOIN step_costs USING (noise_multiplier, sample_rate)"
        " WHERE ? IS NULL OR run = ? GROUP BY noise_multiplier, sample_rate",
        (run, run),
    ).fetchall()
    total = np.zeros(len(ORDERS))
    for rdp, steps in rows:
        total += steps * _checked(json.loads(rdp or "null"))
    return epsilon_of(total, delta)


def _learn_cost(database: sqlite3.Connection, noise_multiplier: float, sample_rate: float) -> None:
    """Compute and store the cost of a step, if it is not known yet. Raises Refusal E_PRIVACY_SETTINGS."""
    key = (noise_multiplier, sample_rate)
    query = "SELECT 1 FROM step_costs WHERE noise_multiplier = ? AND sample_rate = ?"
    if database.execute(query, key).fetchone():
        return
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.training.privacy_budget", repr(noise_multiplier), repr(sample_rate)],
            capture_output=True,
            timeout=_SECONDS,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
            check=True,
        )
        costs = _checked(json.loads(done.stdout))
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        text = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else ""
        raise Refusal(reasons.PRIVACY_SETTINGS, private=f"{error} {text[-2000:]}") from error
    row = (*key, json.dumps(costs.tolist()))
    database.execute("INSERT OR REPLACE INTO step_costs VALUES (?, ?, ?)", row)


def _checked(costs: object) -> NDArray[np.float64]:
    """Check that costs are positive and finite, one for each order. Raises ValueError."""
    array = np.asarray(costs, dtype=np.float64)
    if array.shape != ORDERS.shape or not np.isfinite(array).all() or (array <= 0).any():
        raise ValueError("not the costs of a step")
    return array


if __name__ == "__main__":
    sys.stdout.write(json.dumps(step_costs(float(sys.argv[1]), float(sys.argv[2])).tolist()))
