"""Slices per second by transfer syntax: folder to checked HU volume, compared with decoding and reading its files."""

from pathlib import Path

from chest import SYNTAXES, can_write, write_chest
from common import Figure, Part, processor_seconds
from pydicom import dcmread

from pipeline.imaging.discovery import find_series
from pipeline.imaging.series_reader import read_series
from pipeline.system.malloc import keep_memory

REPEATS, SLICES = 5, 60
SHORT = 3, 24  # the same for the short form
DECODING, BYTES = "pydicom, decoding alone", "reading the bytes alone"


def measure(folder: Path, *, is_short: bool = False) -> Part:
    keep_memory()
    repeats, slices = SHORT if is_short else (REPEATS, SLICES)
    written = {name: syntax for name, syntax in SYNTAXES.items() if can_write(syntax)}
    figures = []
    for name, syntax in written.items():
        write_chest(folder / name, syntax, slices=slices)
        figures += _syntax(folder / name, name, repeats)
    notes = [
        f"{slices} synthetic slices, 512 x 512, 16 bits, in the page cache; one thread; a second of processor time.",
        "Ours: find the series, read and check headers and pixels, sort, HU. pydicom: pixel_array of each file.",
        "Memory is kept between series, as in the workers of the ingestion; the same for all.",
    ]
    notes += [f"{name} left out: no encoder here." for name in SYNTAXES if name not in written]
    return Part(notes, figures)


def _syntax(folder: Path, name: str, repeats: int) -> list[Figure]:
    files = sorted(folder.rglob("*.dcm"))

    def ours() -> None:
        read_series(find_series(folder)[0][0])

    def decoding() -> None:
        for path in files:
            _ = dcmread(path).pixel_array

    def reading() -> None:
        for _ in range(20):  # the clock is too coarse for a single one
            for path in files:
                path.read_bytes()

    times = processor_seconds(repeats, ours, decoding, reading)
    ours_per_s, decoding_per_s, reading_per_s = (
        [len(files) * rounds / t for t in each] for each, rounds in zip(times, (1, 1, 20), strict=True)
    )
    return [
        Figure(f"reading, {name}", DECODING, "slices/s", ours_per_s, decoding_per_s, "at least 0.8"),
        Figure(f"reading, {name}", BYTES, "slices/s", ours_per_s, reading_per_s),
    ]
