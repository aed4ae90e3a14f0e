"""Compare the lungs that the segmenter finds in scans of patients with masks that people drew. Not in `make bench`.

    python benchmarks/lung_patients.py SCANS MASKS [--fluid MASKS]

SCANS has a folder of one DICOM series, or a NIfTI file, for each scan; MASKS has NIfTI files of the same names (1 right
lung, 2 left lung; without a 2, 1 is both), and those of `--fluid` say where pleural fluid is (1). A scan may have one
of them, or both. The names become part of the tables, so they must not identify anybody. The project has no such scans;
docs/lungs.md says which public ones were used.

The lungs are compared on the scan's own grid, and so are those that the threshold finds. A mask of radiotherapy leaves
out tumour, fluid and collapsed lung, which the segmenter counts as lung in part: with disease, no agreement of 1 can be
expected. Writes benchmarks/results/lung_patients.json and lung_patients.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from lungs import STEP_MM, by_threshold
from numpy.typing import NDArray
from run import RESULTS, circumstances, markdown

from models.lung_segmenter import WEIGHTS_SHA256
from pipeline.imaging.volume import Volume
from pipeline.preprocessing.area_resample import area_means
from pipeline.preprocessing.lesion_burden import burden, median_density, unsure_share
from pipeline.preprocessing.lung_regions import dice, find_regions
from pipeline.preprocessing.preprocess import orient, resample
from pipeline.scoring.label_maps import nearest_on
from pipeline.scoring.quality_checks import MOST_UNSURE
from pipeline.scoring.single_scan import read_one

HEAD = [
    "scan",
    "Dice",
    "right",
    "left",
    "by threshold",
    "litres",
    "litres of the mask",
    "ground glass",
    "consolidation",
]


def read(scan: Path, mask: Path) -> tuple[Volume, NDArray[np.float32], NDArray[np.uint8]]:
    """Return a scan, its HU on the working grid, and the mask on the scan's own grid."""
    one = read_one(scan, lungs=mask)
    assert one.mask is not None
    volume = orient(one.volume)
    size = tuple(max(1, round(extent / STEP_MM)) for extent in volume.extent_mm)
    hu = resample(area_means(volume.hu, size), size).numpy()
    return volume, hu, one.mask.on(volume.hu.shape, volume.affine)


def voxel_ml(volume: Volume) -> float:
    return float(abs(np.linalg.det(volume.affine[:3, :3])) / 1e3)


def judge(scan: Path, mask: Path) -> dict[str, Any]:
    """Return the figures of one scan; `right` and `left` are None if the mask does not tell the sides apart."""
    volume, hu, drawn = read(scan, mask)
    shape, voxel_litres = drawn.shape, voxel_ml(volume) / 1e3
    found, threshold = find_regions(hu, STEP_MM), by_threshold(hu)
    lungs = found.lungs_on(shape)
    has_sides = bool((drawn == 2).any())
    right, left = (dice(lungs == side, drawn == side) if has_sides else None for side in (1, 2))
    whole = burden(hu, found, STEP_MM, density=median_density(volume.hu, hu.shape)).regions["both"]["whole"]
    return {
        "dice": dice(lungs > 0, drawn > 0),
        "right": right,
        "left": left,
        "threshold": None if threshold is None else dice(nearest_on(shape, threshold), drawn > 0),
        "litres": np.count_nonzero(lungs) * voxel_litres,
        "litres_of_mask": np.count_nonzero(drawn) * voxel_litres,
        "ground_glass": whole.ground_glass,
        "consolidation": whole.consolidation,
        "is_flagged": unsure_share(hu, found) > MOST_UNSURE,
    }


def judge_fluid(scan: Path, mask: Path) -> dict[str, Any]:
    """Return how much of a mask of pleural fluid counts as lung, in millilitres."""
    volume, hu, drawn = read(scan, mask)
    fluid, found = drawn > 0, find_regions(hu, STEP_MM)
    return {
        "fluid_ml": np.count_nonzero(fluid) * voxel_ml(volume),
        "as_lung_ml": np.count_nonzero(fluid & (found.lungs_on(fluid.shape) > 0)) * voxel_ml(volume),
        "is_flagged": unsure_share(hu, found) > MOST_UNSURE,
    }


def of_fluid(scans: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines about fluid; none if no scan has a mask of it."""
    if not scans:
        return []
    total, as_lung = (sum(row[key] for row in scans.values()) for key in ("fluid_ml", "as_lung_ml"))
    shares = [row["as_lung_ml"] / row["fluid_ml"] for row in scans.values()]
    rows = [
        [name, f"{row['fluid_ml']:.0f}", f"{row['as_lung_ml']:.0f}", f"{share:.0%}", "yes" if row["is_flagged"] else ""]
        for (name, row), share in zip(scans.items(), shares, strict=True)
    ]
    return [
        "## Pleural fluid",
        "",
        *markdown(["scan", "fluid, mL", "of it counted as lung, mL", "share", "`W_BORDER_UNSURE`"], rows),
        f"Of all fluid {as_lung / total:.0%} counts as lung, and {np.median(shares):.0%} in the median of the scans.",
        "",
    ]


def text(result: dict[str, Any]) -> str:
    rows = []
    for name, row in result["scans"].items():
        areas = [row[key] for key in ("dice", "right", "left", "threshold")]
        shares = [f"{100 * row[key]:.1f} %" for key in ("ground_glass", "consolidation")]
        litres = [f"{row[key]:.2f}" for key in ("litres", "litres_of_mask")]
        flag = " (`W_BORDER_UNSURE`)" if row["is_flagged"] else ""
        rows.append([name, *("–" if each is None else f"{each:.3f}" for each in areas), *litres, *shares])
        rows[-1][-1] += flag
    about = f"{result['date']}; {result['machine']}. Weights {result['weights'][:12]}. `benchmarks/lung_patients.py`."
    return "\n".join(
        [
            "# Lungs of patients, compared with masks that people drew",
            "",
            about,
            "",
            *markdown(HEAD, rows),
            *of_fluid(result["fluid"]),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the segmenter's lungs with masks that people drew.")
    parser.add_argument("scans", type=Path)
    parser.add_argument("masks", type=Path)
    parser.add_argument("--fluid", type=Path, help="masks of pleural fluid")
    arguments = parser.parse_args()
    scans = {path.name.removesuffix(".gz").removesuffix(".nii"): path for path in sorted(arguments.scans.iterdir())}
    found, fluid = (
        {name: of(path, mask) for name, path in scans.items() if (mask := folder / f"{name}.nii.gz").exists()}
        for of, folder in ((judge, arguments.masks), (judge_fluid, arguments.fluid or Path("no masks")))
    )
    result = {**circumstances(), "weights": WEIGHTS_SHA256, "scans": found, "fluid": fluid}
    (RESULTS / "lung_patients.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "lung_patients.md").write_text(text(result))
    print(text(result))


if __name__ == "__main__":
    main()
