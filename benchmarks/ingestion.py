"""From a folder of DICOM files to a cached tensor: time and memory beside MONAI and SimpleITK, and on two cores."""

from pathlib import Path

from chest import SYNTAXES, can_write, write_chest
from common import Figure, Part, runs_in_turn

REPEATS = 5
REPEATS_COMPRESSED = 3
SERIES = {"uncompressed": 16, "JPEG-LS": 8}  # for the workers
MONAI = {"monai_1_5mm": "MONAI, ITKReader, 1.5 mm", "monai_4mm": "MONAI, ITKReader, 4 mm (ours works at 4 mm)"}
SIMPLEITK = "SimpleITK, reading alone"


def measure(folder: Path) -> Part:
    figures = []
    for name, syntax in SYNTAXES.items():
        if can_write(syntax):
            figures += _one_series(write_chest(folder / name, syntax), name)
    notes = [
        "One synthetic series of 300 slices, 512 x 512, 16 bits. Each run in a fresh process; files in the page cache.",
        "Ours: find the series, check and read it, digest, lungs, crop, window, what the data contract wants to know, "
        "tensor written to disk; one thread.",
        "MONAI: LoadImaged, EnsureChannelFirstd, Orientationd, Spacingd; neither checks nor writes anything.",
        "Peak memory: of the whole process, libraries included.",
        f"Workers: {' or '.join(f'{n} {name}' for name, n in SERIES.items())} series, found, examined and remembered; "
        "the start of the workers included.",
    ]
    notes += [f"{name} left out: no encoder here." for name, syntax in SYNTAXES.items() if not can_write(syntax)]
    return Part(notes, figures + [_workers(folder / "many" / name, name) for name in SERIES])


def _one_series(folder: Path, name: str) -> list[Figure]:
    """All comparisons for the uncompressed series, the main one for the others."""
    is_main = name == "uncompressed"
    others = {**MONAI, "simpleitk": SIMPLEITK} if is_main else {"monai_4mm": MONAI["monai_4mm"]}
    runs = runs_in_turn(REPEATS if is_main else REPEATS_COMPRESSED, ["ours", *others], folder)

    def figure(what: str, other: str, unit: str, value: str, target: str = "") -> Figure:
        ours, theirs = ([getattr(run, value) for run in runs[contender]] for contender in ("ours", other))
        return Figure(f"{what}, {name}", others[other], unit, ours, theirs, target)

    figures = []
    for other in others:
        target = "at most 0.33" if is_main and other in MONAI else ""
        figures.append(figure("folder to tensor", other, "wall s", "wall_s", target))
        figures.append(figure("folder to tensor", other, "processor s", "processor_s"))
        if is_main:
            figures.append(figure("with imports", other, "wall s", "with_imports_s"))
            figures.append(figure("peak memory", other, "MB", "peak_mb", "below 1" if other in MONAI else ""))
    return figures


def _workers(folder: Path, name: str) -> Figure:
    """Series a minute with two workers against one."""
    for number in range(1, SERIES[name] + 1):
        write_chest(folder / str(number), SYNTAXES[name], number=number)
    runs = runs_in_turn(REPEATS_COMPRESSED, ["two_workers", "one_worker"], folder)
    two, one = ([SERIES[name] * 60 / run.wall_s for run in runs[way]] for way in ("two_workers", "one_worker"))
    return Figure(f"ingestion with two workers, {name}", "one worker", "series/min", two, one, "at least 1.7")
