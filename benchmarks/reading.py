"""Slices a second by transfer syntax: folder to checked HU volume, beside bare decoding of the same files."""

from pathlib import Path

from chest import SYNTAXES, can_write, write_chest
from common import Figure, Part, processor_seconds
from pydicom import dcmread

from pipeline.dicom import read_series
from pipeline.series import find_series

REPEATS = 5
SLICES = 60


def measure(folder: Path) -> Part:
    figures = [_syntax(folder / name, name) for name, syntax in SYNTAXES.items() if can_write(syntax)]
    notes = [
        f"{SLICES} synthetic slices, 512 x 512, 16 bits, in the page cache; one thread; a second of processor time.",
        "Ours: find the series, read and check headers and pixels, sort, HU. pydicom: pixel_array of each file.",
    ]
    notes += [f"{name} left out: no encoder here." for name, syntax in SYNTAXES.items() if not can_write(syntax)]
    return Part(notes, figures)


def _syntax(folder: Path, name: str) -> Figure:
    write_chest(folder, SYNTAXES[name], slices=SLICES)
    files = sorted(folder.rglob("*.dcm"))

    def ours() -> None:
        read_series(find_series(folder)[0][0])

    def bare() -> None:
        for path in files:
            _ = dcmread(path).pixel_array

    ours_per_s, bare_per_s = ([SLICES / t for t in times] for times in processor_seconds(REPEATS, ours, bare))
    return Figure(f"reading, {name}", "pydicom, decoding alone", "slices/s", ours_per_s, bare_per_s)
