"""Peak memory with a very long series: 2,000 slices of 512 x 512, 0.3 mm apart, uncompressed, 1.05 GB of pixels.

    python benchmarks/long_series.py

From the folder to the tensor (the ingestion), and to an answer with map, each in a process of its own. Exits with 1 if
one of them needs more than 2,000 MB. The chest is in the upper half; below it, the lowest slice is repeated.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from chest import GRID, SYNTAXES, write_chest
from pydicom import dcmread
from pydicom.uid import generate_uid
from scoring import random_release

SLICES, STEP_MM, MOST_MB = 2_000, 0.3, 2_000
FRESH = Path(__file__).with_name("fresh.py")


def write_long_series(folder: Path) -> Path:
    """Write the series to `folder`/series; return `folder`."""
    with tempfile.TemporaryDirectory() as chest:
        write_chest(Path(chest), SYNTAXES["uncompressed"])
        images = [dcmread(path) for path in sorted(Path(chest).glob("*.dcm"))]
    images.sort(key=lambda image: float(image.ImagePositionPatient[2]))
    x_mm, y_mm, lowest_mm = map(float, images[0].ImagePositionPatient)
    below = SLICES - round(len(images) * GRID.spacing_mm[0] / STEP_MM)
    (folder / "series").mkdir()
    for number in range(SLICES):
        index = min(int(max(number - below, 0) * STEP_MM / GRID.spacing_mm[0]), len(images) - 1)
        image, z_mm = images[index], round(lowest_mm + (number - below) * STEP_MM, 3)
        image.ImagePositionPatient = [x_mm, y_mm, z_mm]
        image.SliceThickness, image.SpacingBetweenSlices, image.SliceLocation = STEP_MM, STEP_MM, z_mm
        image.InstanceNumber = number + 1
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(number)])
        image.save_as(folder / "series" / f"{number:04}.dcm")
    return folder


def peak_mb(contender: str, folder: Path) -> float:
    """Return the peak memory of one run of a contender in a fresh process."""
    command = [sys.executable, str(FRESH), contender, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mb"])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = write_long_series(Path(name))
        random_release(folder / "model")
        peaks_mb = {"ingestion": peak_mb("ours", folder / "series"), "scoring": peak_mb("scoring", folder)}
    print(json.dumps({work: round(peak) for work, peak in peaks_mb.items()}))
    sys.exit(max(peaks_mb.values()) > MOST_MB)


if __name__ == "__main__":
    main()
