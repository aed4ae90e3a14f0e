"""Does a release detect scans unlike those of its training, and does its calibration band contain the truth?

    python benchmarks/familiarity.py [DEMO] [--scans 60] [--federations 250]

DEMO: the folder of a finished `fedthorax demo`, whose model and limit a real federation learnt from synthetic
hospitals. The model gets new phantoms of its hospitals, of a hospital that did not train, and inputs that are out of
place. The bands are those of simulated federations with known truth. Writes benchmarks/results/familiarity.json and
familiarity.md.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import beta

from federation.cli.demo import ANATOMY, TRAINING, UNSEEN
from models.calibration import fit_platt, middle, pool
from models.familiarity import Appearance, Familiarity, appearance_features
from models.refusal import Refusal
from models.release import load_release
from pipeline.phantom.anatomy import Field, Grid, smooth_noise
from pipeline.phantom.cohorts import volume_of
from pipeline.phantom.generate import make_body
from pipeline.phantom.hospitals import HOSPITALS, Hospital
from pipeline.phantom.patients import draw_patient
from pipeline.phantom.scans import acquire
from pipeline.preprocessing.lungs import find_lungs
from pipeline.preprocessing.preprocess import prepare
from pipeline.preprocessing.preprocess_settings import Preprocessing

RESULTS = Path(__file__).with_name("results")
SEED = 4711
HOSPITAL = {at.name: at for at in HOSPITALS}
AT_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)  # percentiles of all patients' logits at which the band is evaluated
DIFFERENCES = {
    "not at all": (0.0, 0.0),
    "some": (0.15, 0.3),
    "much": (0.3, 0.6),
}  # standard deviations of slope and intercept


# --- a model with a limit of familiar scans ------------------------------------------------------------


def learn(demo: Path) -> tuple[Familiarity, Preprocessing]:
    """Return the limit of the demo's model, and how it prepares scans."""
    description = load_release(demo / "model").description
    assert description.familiarity is not None
    return description.familiarity, Preprocessing.model_validate(description.preprocessing)


# --- the scans --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phantom:
    """Make a patient's scan as a hospital's scanner produces it."""

    hu: Field
    grid: Grid
    rng: Generator


def phantoms(at: Hospital, count: int, stream: int) -> Iterator[Phantom]:
    for number in range(count):
        rng = np.random.default_rng([SEED, stream, number])
        patient = draw_patient(f"X-{number:06d}", f"SYNTHETIC^{number:06d}", at.mix, rng)
        lesions, _ = make_body(patient, at, rng, ANATOMY)
        yield Phantom(acquire(lesions.hu, at.scanner, rng), at.scanner.grid, rng)


def _in_lungs(change: Callable[[Field, Generator], Field]) -> Callable[[Phantom], Field]:
    """Change the lungs' voxels, given as (voxels,)."""

    def changed(scan: Phantom) -> Field:
        lungs = find_lungs(volume_of(scan.hu, scan.grid).hu, scan.grid.spacing_mm)
        hu = scan.hu.copy()
        hu[lungs] = change(hu[lungs], scan.rng)
        return hu

    return changed


def _scaled(factor: float) -> Callable[[Phantom], Field]:
    """Apply a wrong rescale slope and keep the value of air."""
    return lambda scan: (scan.hu + 1000) * factor - 1000


def _cylinders(scan: Phantom) -> Field:
    """Make two gas-filled cylinders in a body of soft tissue."""
    z, y, x = scan.grid.axes_mm()
    hu = np.where((x / 150) ** 2 + (y / 110) ** 2 < 1, 40.0, -1000.0) + np.zeros_like(z)
    radius, half_length = scan.rng.uniform(35, 50), scan.rng.uniform(70, 110)
    for side in (-1, 1):
        hollow = (((x - side * 70) / radius) ** 2 + (y / (radius * 1.2)) ** 2 < 1) & (np.abs(z) < half_length)
        hu = np.where(hollow, scan.rng.uniform(-1000, -700), hu)
    return (hu + scan.rng.normal(0, 20, hu.shape)).astype(np.float32)


def _bowel(scan: Phantom) -> Field:
    """Make an abdomen full of gas."""
    z, y, x = scan.grid.axes_mm()
    hu = np.where((x / 160) ** 2 + (y / 115) ** 2 < 1, 40.0, -1000.0) + np.zeros_like(z)
    texture = smooth_noise(scan.hu.shape, tuple(14 / mm for mm in scan.grid.spacing_mm), scan.rng)
    gas = ((x / 130) ** 2 + (y / 90) ** 2 < 1) & (np.abs(z) < 100) & (texture > -0.2)
    return (np.where(gas, -980.0, hu) + scan.rng.normal(0, 20, hu.shape)).astype(np.float32)


OUT_OF_PLACE: dict[str, Callable[[Phantom], Field]] = {
    "lungs of noise, -1000 to -300 HU": _in_lungs(lambda hu, rng: rng.uniform(-1000, -300, hu.shape)),
    "lungs of noise, -750 ± 250 HU": _in_lungs(lambda hu, rng: rng.normal(-750, 250, hu.shape)),
    "lungs' voxels shuffled": _in_lungs(lambda hu, rng: rng.permutation(hu)),
    "lungs of one value": _in_lungs(lambda hu, _: np.full_like(hu, -850)),
    "HU halved": _scaled(0.5),
    "HU times 0.7": _scaled(0.7),
    "HU times 1.5": _scaled(1.5),
    "HU doubled": _scaled(2.0),
    "HU 150 too high": lambda scan: scan.hu + 150,
    "HU 200 too low": lambda scan: scan.hu - 200,
    "HU in steps of 300": lambda scan: np.round(scan.hu / 300) * 300,
    "head down": lambda scan: scan.hu[::-1],
    "front to back": lambda scan: scan.hu[:, ::-1],
    "gas-filled cylinders": _cylinders,
    "belly full of gas": _bowel,
}
SPOILT_TENSORS: dict[str, Callable[[NDArray[np.float32], Generator], NDArray[np.float32]]] = {
    "inverted window": lambda tensor, _: np.stack([-tensor[0], tensor[1]]),
    "noise everywhere": lambda tensor, rng: np.stack([rng.uniform(-1, 1, tensor[0].shape), tensor[1]]).astype("f4"),
}


def prepared(hu: Field, grid: Grid, settings: Preprocessing) -> NDArray[np.float32] | None:
    """Preprocess a scan for the network; None if the preprocessing refuses it."""
    try:
        return prepare(volume_of(np.ascontiguousarray(hu), grid), settings).tensor.astype(np.float32)
    except Refusal:
        return None


def meet(settings: Preprocessing, scans: int) -> dict[str, list[Appearance | None]]:
    """Return the appearance features of all scans, by name; None for each scan that the preprocessing refused."""
    met: dict[str, list[Appearance | None]] = {}

    def see(name: str, tensor: NDArray[np.float32] | None) -> None:
        met.setdefault(name, []).append(None if tensor is None else appearance_features(tensor))

    for stream, name in enumerate((*TRAINING, UNSEEN)):
        for scan in phantoms(HOSPITAL[name], scans, stream):
            see(f"good, {name}", prepared(scan.hu, scan.grid, settings))
    for number, name in enumerate(TRAINING):
        for scan in phantoms(HOSPITAL[name], scans // len(TRAINING), 100 + number):
            for what, change in OUT_OF_PLACE.items():
                see(what, prepared(change(scan), scan.grid, settings))
            sound = prepared(scan.hu, scan.grid, settings)
            for what, spoil in SPOILT_TENSORS.items():
                see(what, None if sound is None else spoil(sound, scan.rng))
    return met


def interval(count: int, of: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Clopper & Pearson, Biometrika 1934; 26:404)."""
    low = beta.ppf(0.025, count, of - count + 1) if count else 0.0
    return float(low), float(beta.ppf(0.975, count + 1, of - count) if count < of else 1.0)


def shares(met: dict[str, list[Appearance | None]], known: Familiarity) -> list[dict[str, Any]]:
    rows = []
    for name, seen in met.items():
        distances = [known.distance(each) for each in seen if each is not None]
        beyond = sum(not known.is_familiar(distance) for distance in distances)
        rows.append(
            {
                "what": name,
                "refused_before": len(seen) - len(distances),
                "looked_at": len(distances),
                "beyond": beyond,
                "interval": interval(beyond, len(distances)) if distances else None,
                "median_distance": float(np.median(distances)) if distances else None,
            }
        )
    return rows


# --- the band ---------------------------------------------------------------------------------------------


def coverage(differ: tuple[float, float], federations: int) -> dict[str, Any]:
    """Measure the band's coverage over federations of 3 to 8 hospitals with 10 to 60 validation patients each.

    `differ`: standard deviations of slope and intercept between hospitals.
    """
    held: dict[str, list[float]] = {}
    for number in range(federations):
        rng = np.random.default_rng([SEED, round(100 * differ[0]), number])
        common = np.array([rng.uniform(0.5, 1.5), rng.uniform(-1, 1)])
        pairs = (common + rng.normal(0, differ, (rng.integers(3, 9), 2))).clip([0.1, -9], 9)
        logits = [rng.normal(rng.normal(0, 0.7), rng.uniform(0.8, 2), rng.integers(10, 61)) for _ in pairs]
        labels = [(rng.random(len(x)) < expit(pair[0] * x + pair[1])) for x, pair in zip(logits, pairs, strict=True)]
        fits = [fit_platt(x.astype("f4"), y.astype("f4")) for x, y in zip(logits, labels, strict=True)]
        at = np.quantile(np.concatenate(logits), AT_SHARES)
        for name, fitted in (("pool", pool(fits)), ("middle", middle(fits))):
            bands = np.array([fitted.band(z) for z in at])
            held.setdefault(f"{name}_hospital", []).append(float(np.mean([_holds(bands, pair, at) for pair in pairs])))
            held.setdefault(f"{name}_common", []).append(float(np.mean(_holds(bands, common, at))))
            held.setdefault(f"{name}_width", []).append(float(np.diff(bands).mean()))
    return {name: {"mean": float(np.mean(v)), "sem": float(np.std(v) / len(v) ** 0.5)} for name, v in held.items()}


def _holds(bands: NDArray[np.float64], pair: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.bool_]:
    true = expit(pair[0] * at + pair[1])
    return (bands[:, 0] <= true) & (true <= bands[:, 1])


# --- the page ---------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))


def markdown(result: dict[str, Any]) -> str:
    known, bands = result["familiarity"], result["bands"]
    scans = [
        (
            row["what"],
            str(row["refused_before"]),
            f"{row['beyond']} of {row['looked_at']}",
            "{:.2f} to {:.2f}".format(*row["interval"]) if row["interval"] else "",
            f"{row['median_distance']:.2f}" if row["interval"] else "",
        )
        for row in known["rows"]
    ]
    good = [row for row in known["rows"] if row["what"].startswith("good")]
    beyond, of_good = (sum(row[what] for row in good) for what in ("beyond", "looked_at"))
    held = [
        (
            name,
            *(f"{each[of]['mean']:.3f} ± {1.96 * each[of]['sem']:.3f}" for of in ("pool_hospital", "middle_hospital")),
            *(f"{each[of]['mean']:.3f}" for of in ("pool_common", "pool_width", "middle_width")),
        )
        for name, each in bands.items()
    ]
    return f"""# Scans unlike those of training, and the coverage of the calibration band

{result["date"]}; {result["machine"]}. Synthetic scans and simulated scores, no patients.

## Scans beyond the limit

The model of `fedthorax demo`: its limit is {known["limit"]:.2f}, computed at {known["sites"]} hospitals from means and
variances only. A scan beyond the limit gets no probability. The hospital {UNSEEN} was in no training. Of all good scans
{beyond} of {of_good} are beyond it ({"{:.1%} to {:.1%}".format(*interval(beyond, of_good))}). The features, and the
constants of the limit, were chosen on other phantoms of the same hospitals with the same faults, so other faults may
pass more often.

{table(("scans", "refused before", "beyond the limit", "95 % interval", "median distance"), scans)}

## The band of the calibration

Each row has {result["federations"]} simulated federations of 3 to 8 hospitals with 10 to 60 validation patients. It
shows the share of hospitals' true probabilities within the 95 % band, at five logits from the 5th to the 95th
percentile of the patients; ± 1.96 standard errors. A federation does not know beforehand how much hospitals differ.

{
        table(
            (
                "hospitals differ",
                "held at a hospital",
                "the same, robust strategies",
                "held over all hospitals",
                "width",
                "the same, robust strategies",
            ),
            held,
        )
    }
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Count scans beyond the limit, and measure how often the band contains the truth."
    )
    parser.add_argument("demo", type=Path, nargs="?", default=Path("demo"))
    parser.add_argument("--scans", type=int, default=60, help="of each kind (default 60)")
    parser.add_argument("--federations", type=int, default=250)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    known, settings = learn(asked.demo)
    met = meet(settings, asked.scans)
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "familiarity": {
            "limit": known.limit,
            "sites": known.sites,
            "rows": shares(met, known),
        },
        "federations": asked.federations,
        "bands": {name: coverage(differ, asked.federations) for name, differ in DIFFERENCES.items()},
    }
    (RESULTS / "familiarity.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "familiarity.md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
