"""Evaluate the lung segmenter against the method by threshold. Not part of `make bench`.

    python benchmarks/lungs.py [--real ../shared/data/real-thorax-64] [--scans 120] [--timing] [--gas 600]

- Synthetic bodies that no step of training saw, of the generator that it learnt from: those on which each version was
  judged, and others on which nothing was ever chosen.
- Bodies with gas in stomach and colon but no free air, and bodies with free air below the diaphragm.
- Bodies in settings that training never drew (`lung_settings`).
- Phantoms of the synthetic hospitals: another generator, which it never saw.
- One real thorax with a label map, if its folder is there (`lungs_real`): whole, by thirds of each lung, disturbed
  (turned, thick slices, noise, kernels, an offset, padding), each compared with its own undisturbed mask, and with
  planted pneumonia.

The shares of dense lung are compared with those that the true labels give for the same scan: the error that is left is
the segmenter's. Writes benchmarks/results/lungs.json and lungs.md.
"""

import argparse
import json
import math
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lung_settings import SETTINGS, held_out
from lungs_real import RealThorax, figures, planted
from numpy.typing import NDArray
from run import circumstances, markdown
from scipy import ndimage
from scipy.stats import binomtest

from models.lung_segmenter import WEIGHTS_SHA256, Region, Tissue
from models.refusal import Refusal
from pipeline.phantom.anatomy import Build, Grid, make_thorax
from pipeline.phantom.body.abdomen import USUAL
from pipeline.phantom.body.sample import PLAIN, STEP_MM, Sample, Variety, draw_sample
from pipeline.phantom.lesions import add_lesions
from pipeline.preprocessing.lesion_burden import Burden, burden, unsure_share
from pipeline.preprocessing.lung_labels import count as count_voxels
from pipeline.preprocessing.lung_regions import LungRegions, dice, find_regions
from pipeline.preprocessing.lungs import find_lungs
from pipeline.preprocessing.share_ranges import LEAST_CONSOLIDATION, LEAST_GROUND_GLASS, doubtful_share
from pipeline.scoring.quality_checks import MOST_UNSURE

RESULTS = Path(__file__).with_name("results")
UNSEEN_SEED, LIMITS_SEED, FRESH_SEED = 10_000, 30_000, 50_000  # training uses other seeds
SOLID_SEED, TURNED_SEED, AORTA_SEED, ARCH_SEED, FLUID_SEED = 70_000, 90_000, 110_000, 130_000, 150_000
FULL_SIDE_SEED, SOLID_LUNG_SEED = 170_000, 190_000
PLANT_SEED = 1000
SOLID, TURNED = Variety(solid=1.0), Variety(solid=0.5, turned=1.0, muscles=1.0, tubes=0.2)
AORTA, ARCH = Variety(solid=0.5, muscles=1.0, aorta=1.0), Variety(solid=0.5, muscles=1.0, arch=1.0)
FLUID, FULL_SIDE = Variety(solid=0.5, muscles=1.0, fluid=1.0), Variety(solid=0.5, muscles=1.0, full_side=1.0)
SOLID_LUNG = Variety(muscles=1.0, solid_lung=1.0)
SETTING_SCANS = 30  # of each setting
LEAST_FOR_LIMITS = 19  # of fewer scans, not even the largest error bounds 95 % of others
PHANTOM_GRID = Grid((80, 96, 96), (4.0, 4.0, 4.0))
SOME = 0.02  # share of the lungs from which on a scan counts as diseased
BOWEL_ML = 10.0  # gas of the bowel that is counted as lung, from which on a scan counts as failed
POINTS = 0.02
VESSEL_HU = 100.0  # by which a vessel of a phantom stands out of the lung around it
Mask = NDArray[np.bool_]
Scan = tuple[NDArray[np.float32], LungRegions]
Row = dict[str, Any]


def mean(values: list[float]) -> str:
    """Return a mean with its 95 % interval, by the bootstrap over scans."""
    if not values:
        return "–"
    drawn = np.random.default_rng(0).choice(values, (4000, len(values))).mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return f"{np.mean(values):.3f} ({low:.3f} to {high:.3f})"


def part(hits: list[bool]) -> str:
    """Return a share in percent with Wilson's 95 % interval."""
    if not hits:
        return "–"
    interval = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    return f"{100 * np.mean(hits):.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


# --- scans ------------------------------------------------------------------------------------------------


def bodies(first: int, count: int, variety: Variety = PLAIN) -> Iterator[Scan]:
    for seed in range(first, first + count):
        yield with_truth(draw_sample(np.random.default_rng(seed), variety=variety))


def with_truth(sample: Sample) -> Scan:
    return sample.hu, LungRegions.of_labels(sample.regions, sample.tissues)


def phantoms(count: int) -> Iterator[Scan]:
    _, _, x = PHANTOM_GRID.axes_mm()
    for seed in range(count):
        rng = np.random.default_rng(seed)
        thorax = make_thorax(PHANTOM_GRID, Build.draw(rng, female=bool(seed % 2)), rng)
        is_ill = bool(seed % 2)
        ill = add_lesions(
            thorax, PHANTOM_GRID, pattern="covid" if is_ill else "none", load=0.2, consolidated=0.3, rng=rng
        )
        regions = np.where(x > 0, Region.LEFT_LUNG, Region.RIGHT_LUNG) * thorax.lungs
        added = ill.hu - thorax.hu
        stands_out = thorax.hu - ndimage.median_filter(thorax.hu, 3) > VESSEL_HU
        tissues = np.where(stands_out, Tissue.VESSEL, Tissue.PARENCHYMA)
        tissues = np.where(added > 100, Tissue.GROUND_GLASS, tissues)
        tissues = np.where(added > 400, Tissue.CONSOLIDATION, tissues)
        truth = LungRegions.of_labels(regions.astype(np.uint8), (tissues * thorax.lungs).astype(np.uint8))
        yield (ill.hu + rng.normal(0, 12, ill.hu.shape)).astype(np.float32), truth


# --- one scan ---------------------------------------------------------------------------------------------


def gas(count: int) -> list[list[str]]:
    """Return a line for bodies without free air, and one for bodies that all have it; it is rare in patients."""
    kinds = {
        "gas in stomach and colon": (count, replace(USUAL, free_air=0.0)),
        "free air too": (max(1, count // 10), replace(USUAL, free_air=1.0)),
    }
    lines = []
    for name, (scans, often) in kinds.items():
        found = [gas_ml(draw_sample(np.random.default_rng(FRESH_SEED + n), gas=often)) for n in range(scans)]
        answered = [threshold for _, threshold in found if threshold is not None]
        over = part([own > BOWEL_ML for own, _ in found])
        lines.append([f"{name} ({scans})", over, part([each > BOWEL_ML for each in answered])])
    return lines


def gas_ml(sample: Sample) -> tuple[float, float | None]:
    """Return the gas that counts as lung, with the segmenter and by threshold (None if that refuses the scan)."""
    truth, voxel_ml = sample.regions == int(Region.BOWEL_GAS), STEP_MM**3 / 1000
    threshold = by_threshold(sample.hu)
    own = float((find_regions(sample.hu, STEP_MM).lungs & truth).sum() * voxel_ml)
    return own, None if threshold is None else float((threshold & truth).sum() * voxel_ml)


def by_threshold(hu: NDArray[np.float32]) -> Mask | None:
    try:
        return find_lungs(hu, (STEP_MM, STEP_MM, STEP_MM))
    except Refusal:
        return None


def judge(hu: NDArray[np.float32], truth: LungRegions) -> Row:
    found = find_regions(hu, STEP_MM)
    threshold = by_threshold(hu)
    wanted, seen = burden(hu, truth, STEP_MM), burden(hu, found, STEP_MM)
    voxel_ml = STEP_MM**3 / 1000
    gas = truth.regions == Region.BOWEL_GAS
    inside = truth.lungs
    return {
        "dice": dice(found.lungs, inside),
        "right": dice(found.regions == Region.RIGHT_LUNG, truth.regions == Region.RIGHT_LUNG),
        "left": dice(found.regions == Region.LEFT_LUNG, truth.regions == Region.LEFT_LUNG),
        "threshold": None if threshold is None else dice(threshold, inside),
        "outside_ml": float((found.lungs & ~inside).sum() * voxel_ml),
        "gas_ml": float((found.lungs & gas).sum() * voxel_ml),
        "threshold_gas_ml": None if threshold is None else float((threshold & gas).sum() * voxel_ml),
        "ill": float(np.isin(truth.tissues, (1, 2)).sum() / max(1, inside.sum())),
        "solid": float((truth.tissues == Tissue.CONSOLIDATION).sum() / max(1, inside.sum())),
        "glass_error": error(seen, wanted, "ground_glass"),
        "solid_error": error(seen, wanted, "consolidation"),
        "glass_in_range": is_within(seen, wanted, "ground_glass"),
        "solid_in_range": is_within(seen, wanted, "consolidation"),
        "is_flagged": unsure_share(hu, found) > MOST_UNSURE,
    }


def error(seen: Burden, wanted: Burden, what: str) -> float:
    found, true = (getattr(each.regions["both"]["whole"], what) for each in (seen, wanted))
    return abs((found or 0.0) - (true or 0.0))


def is_within(seen: Burden, wanted: Burden, what: str) -> bool:
    """Whether the true share lies in the range that is told; there is none if no lung was found."""
    if what not in seen.ranges:
        return False
    low, high = seen.ranges[what]
    return low <= (getattr(wanted.regions["both"]["whole"], what) or 0.0) <= high


def limits(count: int) -> dict[str, float]:
    """Return the factors of `share_ranges` with which 95 % of other bodies are within their ranges."""
    factors: dict[str, list[float]] = {"ground_glass": [], "consolidation": []}
    for hu, truth in bodies(LIMITS_SEED, count):
        found = find_regions(hu, STEP_MM)
        wanted, seen = burden(hu, truth, STEP_MM), burden(hu, found, STEP_MM)
        doubtful = doubtful_share(hu, found, seen.opacities, count_voxels(seen.labels)[1])
        glass = (seen.regions["both"]["whole"].ground_glass or 0.0) + LEAST_GROUND_GLASS
        factors["ground_glass"].append(error(seen, wanted, "ground_glass") / glass)
        factors["consolidation"].append(error(seen, wanted, "consolidation") / (doubtful + LEAST_CONSOLIDATION))
    rank = math.ceil(0.95 * (count + 1)) - 1
    return {share: round(sorted(found)[rank], 3) for share, found in factors.items()}


def summary(rows: list[Row]) -> list[list[str]]:
    """Return a line for each group of scans."""
    groups: dict[str, Callable[[Row], bool]] = {
        "all": lambda row: True,
        "healthy": lambda row: row["ill"] < SOME,
        "ground glass or consolidation": lambda row: row["ill"] >= SOME,
        "consolidation": lambda row: row["solid"] >= SOME,
    }
    return [line(name, [row for row in rows if belongs(row)]) for name, belongs in groups.items()]


def line(name: str, rows: list[Row]) -> list[str]:
    answered = [row for row in rows if row["threshold"] is not None]
    sure = [row for row in rows if not row["is_flagged"]]
    return [
        f"{name} ({len(rows)})",
        mean([row["dice"] for row in rows]),
        f"{mean([row['threshold'] for row in answered])}, {len(rows) - len(answered)} refused",
        f"{np.mean([row['outside_ml'] for row in rows]):.0f}" if rows else "–",
        part([row["gas_ml"] > BOWEL_ML for row in rows]),
        part([row["threshold_gas_ml"] > BOWEL_ML for row in answered]),
        part([row["glass_error"] <= POINTS for row in rows]),
        part([row["solid_error"] <= POINTS for row in rows]),
        part([row["is_flagged"] for row in rows]),
        part([row["solid_error"] <= POINTS for row in sure]),
        part([row["glass_in_range"] for row in rows]),
        part([row["solid_in_range"] for row in rows]),
    ]


# --- the time ----------------------------------------------------------------------------------------------


def timing() -> dict[str, float]:
    """Return seconds for a large adult on the working grid, and how far memory rises."""
    hu = draw_sample(np.random.default_rng(1)).hu
    large = np.full((88, 96, 112), -1000, np.float32)
    large[tuple(slice(0, min(a, b)) for a, b in zip(large.shape, hu.shape, strict=True))] = hu[:88, :96, :112]
    find_regions(large[:32, :32, :32], STEP_MM)  # loads the weights
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        find_regions(large, STEP_MM)
        seconds.append(time.perf_counter() - began)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": round(min(seconds), 2), "memory_mb": round((after - before) / 1024)}


# --- the page ---------------------------------------------------------------------------------------------


def text(result: dict[str, Any]) -> str:
    head = ["scans", "Dice", "Dice by threshold", "mL outside the true lungs, mean"]
    head += [f"over {BOWEL_ML:g} mL of bowel gas as lung", "the same by threshold"]
    head += ["ground glass within 2 points", "consolidation within 2 points", "flagged W_BORDER_UNSURE"]
    head += ["consolidation within 2 points, without the flag"]
    head += ["ground glass within its range", "consolidation within its range"]
    lines = [
        "# Where the lungs are",
        "",
        f"{result['date']}; {result['machine']}. Weights {WEIGHTS_SHA256[:12]}. 95 % intervals over scans. "
        "`benchmarks/lungs.py` defines the metrics. All scans but those of the real thorax are synthetic.",
        "",
    ]
    for name, rows in result["synthetic"].items():
        lines += [f"## {name}", "", *markdown(head, rows)]
    if rows := result.get("gas"):
        lines += ["## Gas below the diaphragm, in bodies on which nothing was chosen", ""]
        lines += markdown(["scans", *head[4:6]], rows)
    if found := result.get("real"):
        lines += ["## One real thorax, healthy", ""]
        lines += markdown(
            ["Dice: both", "right", "left", "by threshold", "vessels", "vessels found, or beside"],
            [
                [
                    *(str(found["dice"][side]) for side in ("both", "right", "left")),
                    str(found["threshold"]),
                    *(str(value) for value in found["vessels"].values()),
                ]
            ],
        )
        lines += [
            f"Ground glass {found['ground_glass']:.2%}, consolidation {found['consolidation']:.2%} of the lungs.",
            "",
        ]
        lines += markdown(list(found["thirds"]), [[str(value) for value in found["thirds"].values()]])
        lines += ["Volume of each third, found over true.", ""]
        lines += markdown(
            ["disturbed scan", "Dice with its own mask"], [[k, str(v)] for k, v in found["disturbed"].items()]
        )
    lines += [
        f"A scan of 88 x 96 x 112 voxels of {STEP_MM:g} mm takes {result['timing']['seconds']} s on "
        f"{result['threads']} threads, and {result['timing']['memory_mb']} MB.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate the lung segmenter.")
    parser.add_argument("--real", type=Path, default=Path("../shared/data/real-thorax-64"))
    parser.add_argument("--scans", type=int, default=120)
    parser.add_argument("--timing", action="store_true", help="measure only the time again, on an idle machine")
    parser.add_argument("--gas", type=int, default=0, metavar="SCANS", help="measure only gas again, in so many scans")
    parser.add_argument("--only-real", action="store_true", help="measure only the real thorax again")
    parser.add_argument("--limits", type=int, default=0, metavar="SCANS", help="only print the factors of share_ranges")
    arguments = parser.parse_args()
    if arguments.limits:
        if arguments.limits < LEAST_FOR_LIMITS:
            parser.error(f"--limits needs at least {LEAST_FOR_LIMITS} scans")
        print(limits(arguments.limits))
        return
    if arguments.only_real:
        result = json.loads((RESULTS / "lungs.json").read_text())
        of_real(arguments.real, result, arguments.scans // 2)
        write(result)
        return
    if arguments.gas:
        write({**json.loads((RESULTS / "lungs.json").read_text()), "gas": gas(arguments.gas)})
        return
    if arguments.timing:
        measured = {"timing": timing(), "threads": torch.get_num_threads()}
        write({**json.loads((RESULTS / "lungs.json").read_text()), **measured})
        return
    result: dict[str, Any] = {**circumstances(), "timing": timing(), "threads": torch.get_num_threads()}
    sources = {
        "Unseen bodies of the generator": bodies(UNSEEN_SEED, arguments.scans),
        "Fresh bodies, on which nothing was chosen": bodies(FRESH_SEED, arguments.scans // 2),
        "Fresh bodies with foci that are solid up to their edge": bodies(SOLID_SEED, arguments.scans // 2, SOLID),
        "Fresh bodies with muscles, turned or off the middle": bodies(TURNED_SEED, arguments.scans // 2, TURNED),
        "Fresh bodies with a wide aorta": bodies(AORTA_SEED, arguments.scans // 2, AORTA),
        "Fresh bodies with a high arch of the aorta": bodies(ARCH_SEED, arguments.scans // 2, ARCH),
        "Fresh bodies with a layer of fluid": bodies(FLUID_SEED, arguments.scans // 2, FLUID),
        "Fresh bodies with a side full of fluid": bodies(FULL_SIDE_SEED, arguments.scans // 2, FULL_SIDE),
        "Fresh bodies with a lung that is mostly solid": bodies(SOLID_LUNG_SEED, arguments.scans // 2, SOLID_LUNG),
        "Phantoms of another generator": phantoms(arguments.scans // 3),
    }
    result["synthetic"] = {name: summary([judge(*scan) for scan in scans]) for name, scans in sources.items()}
    result["synthetic"]["Settings that training never drew"] = [
        line(name, [judge(*with_truth(sample)) for sample in held_out(name, min(arguments.scans, SETTING_SCANS))])
        for name in SETTINGS
    ]
    result["gas"] = gas(5 * arguments.scans)
    if arguments.real.is_dir():
        of_real(arguments.real, result, arguments.scans // 2)
    write(result)


def of_real(folder: Path, result: dict[str, Any], scans: int) -> None:
    """Add the figures of the real thorax, as it is and with planted lesions."""
    thorax = RealThorax.read(folder)
    result["real"] = figures(thorax)
    rows = [judge(*scan) for scan in planted(thorax, range(PLANT_SEED, PLANT_SEED + scans))]
    result["synthetic"]["Pneumonia planted in the real thorax"] = summary(rows)


def write(result: dict[str, Any]) -> None:
    (RESULTS / "lungs.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "lungs.md").write_text(text(result))
    print(text(result))


if __name__ == "__main__":
    main()
