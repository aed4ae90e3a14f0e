"""How often do unsuitable scans get no score, and good scans a score? Synthetic scans; not in `make bench`.

    python benchmarks/no_score.py [--model MODEL] [--first 5000] [--each 40] [--good 200]

Scans are scored like a clinician's, starting after the readers; MR is read from DICOM files and recognised by its
header. Without --model, a network with random weights answers, and only the anatomy checks decide. With a release, its
distance from the training data decides too. The limits were set on the seeds from 1000 to 1999 and on the real scans;
the results are from other seeds. Takes some ten minutes on one core.
"""

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from out_of_place import HEAD_GRID, KINDS, Chest, Maker, chest, write_mr
from scipy.stats import binomtest

from models.calibration import Platt
from models.description import Description
from models.network import build_network
from models.network_settings import LABELS, NetworkSettings
from models.refusal import Refusal
from models.release import Release, load_release
from pipeline.imaging.discovery import Series
from pipeline.imaging.series_reader import finish
from pipeline.imaging.volume import Volume, whole_hu
from pipeline.phantom.anatomy import Field, Grid
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.scoring.score import score, score_scan
from pipeline.scoring.single_scan import OneScan

RESULTS = Path(__file__).with_name("results")
REAL = Path(__file__).parents[2] / "shared/data"
GOAL_OUT, GOAL_GOOD = 0.95, 0.02
SCORED = "scored"


def read(seen: Field, grid: Grid, c: Chest) -> OneScan:
    """Make a series as if it was read from files. Raises Refusal: those of `finish`."""
    x0, y0, z0 = grid.origin_mm
    up, back, left = grid.spacing_mm
    affine = np.array([[0, 0, -left, -x0], [0, -back, 0, -y0], [up, 0, 0, z0], [0, 0, 0, 1.0]])
    volume: Volume = finish(whole_hu(seen), affine, set())
    series = Series(
        files=(Path("synthetic.nii.gz"),),
        patient_id=c.patient.patient_id,
        issuer="",
        study_uid="",
        series_uid="",
        modality="CT",
        age_years=float(c.patient.age_years),
        sex=c.patient.sex,
        acquired=None,
        manufacturer="",
        kernel="",
        fingerprint="",
    )
    return OneScan(series, volume, other_series=0, unread=0, seconds=0.0)


def answer(kind: str, make: Maker, seed: int, release: Release) -> str:
    """Return the code of the refusal, or SCORED."""
    c = chest(seed)
    try:
        score_scan(read(make(c), HEAD_GRID if kind == "head" else c.scanner.grid, c), release)
    except Refusal as refusal:
        return refusal.code
    return SCORED


def answer_to_mr(seed: int, release: Release) -> str:
    with tempfile.TemporaryDirectory() as folder:
        write_mr(chest(seed), Path(folder))
        return answer_to(Path(folder), release)


def answer_to(source: Path, release: Release) -> str:
    try:
        score(source, release)
    except Refusal as refusal:
        return refusal.code
    return SCORED


def unlearnt() -> Release:
    """Make a small network with random weights, which claims to be judged; its output does not matter."""
    settings = NetworkSettings(architecture="resnet10", widen_factor=0.125)
    described = Description(
        network=settings,
        preprocessing=Preprocessing().model_dump(mode="json"),
        # As good as the identity, which would mean that a label was not calibrated.
        calibration=dict.fromkeys(LABELS, Platt(slope=1.0, intercept=1e-12)),
        metrics={f"mean_auroc_{label}": 0.5 for label in LABELS},
        study="none",
        run="none",
        rounds=0,
        sites=0,
        strategy="none",
        software="none",
        trained_on_synthetic_data=True,
    )
    return Release(build_network(settings, seed=0), described, sha256="")


def row(kind: str, what: str, codes: list[str]) -> dict[str, Any]:
    refused = len(codes) - codes.count(SCORED)
    interval = binomtest(refused, len(codes)).proportion_ci(method="exact")
    return {
        "kind": kind,
        "what": what,
        "scans": len(codes),
        "no_score": refused,
        "share": refused / len(codes),
        "low": interval.low,
        "high": interval.high,
        "codes": dict(Counter(codes).most_common()),
    }


def measure(release: Release, *, first: int, each: int, good: int) -> list[dict[str, Any]]:
    """Yield good scans, then each kind with each of its variants: `each` scans per variant, including MR by header."""
    rows = [
        row("good", "all four scanners", [answer("good", Chest.seen, s, release) for s in range(first, first + good)])
    ]
    seed = first + good
    for kind, ways in KINDS.items():
        together: list[str] = []
        for way, make in ways.items():
            codes = [answer(kind, make, s, release) for s in range(seed, seed + each)]
            seed += each
            rows.append(row(kind, way, codes))
            together += codes
            print(rows[-1], flush=True)
        if kind == "MR":
            codes = [answer_to_mr(s, release) for s in range(seed, seed + each)]
            seed += each
            rows.append(row(kind, "Modality MR", codes))
            together += codes
        rows.append(row(kind, "all", together))
    return rows


def real(release: Release) -> dict[str, str]:
    """Score the real scans if they are available: one thorax, one abdomen, heads and unusual files."""
    names = ("real-thorax-64/ct-64Dicom", "abdomen-ct/example_ct_dicom", "awkward-dicom/dcm_qa_ct")
    return {name: answer_to(REAL / name, release) for name in names if (REAL / name).is_dir()}


def markdown(rows: list[dict[str, Any]], on_real: dict[str, str], model: str) -> str:
    lines = [
        "# No score\n",
        f"Synthetic scans; {model}. Share without a score, with its 95 % interval (Clopper & Pearson). The goal is at "
        f"least {GOAL_OUT:.0%} of each kind that is out of place, and at most {GOAL_GOOD:.0%} of good scans.\n",
        "| kind | what is wrong | scans | no score | 95 % interval | goal | codes |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        is_met = r["share"] <= GOAL_GOOD if r["kind"] == "good" else r["share"] >= GOAL_OUT
        cells = [
            *(r["kind"], r["what"], str(r["scans"]), f"{r['share']:.1%}", f"{r['low']:.1%}–{r['high']:.1%}"),
            "met" if is_met else "**missed**",
            ", ".join(f"{code} {count}" for code, count in r["codes"].items()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Real scans: " + "; ".join(f"{name}: {code}" for name, code in on_real.items()) + "." if on_real else "",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--first", type=int, default=5000)
    parser.add_argument("--each", type=int, default=40)
    parser.add_argument("--good", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    release = load_release(arguments.model) if arguments.model else unlearnt()
    has_limit = release.description.familiarity is not None
    model = "anatomy and the release's distance decide" if has_limit else "only anatomy decides"
    rows = measure(release, first=arguments.first, each=arguments.each, good=arguments.good)
    on_real = real(release)
    found = {"first_seed": arguments.first, "decides": model, "rows": rows, "real": on_real}
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / "no_score.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.out / "no_score.md").write_text(markdown(rows, on_real, model))
    print(markdown(rows, on_real, model))


if __name__ == "__main__":
    main()
