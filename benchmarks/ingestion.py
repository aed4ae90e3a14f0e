"""Ingestion of a DICOM folder to a cached tensor, compared with reading, decoding, SimpleITK, MONAI, and two cores."""

from pathlib import Path

from chest import SYNTAXES, can_write, copy_chest, write_chest
from common import Figure, Part, on_cores, run_fresh, runs_in_turn

REPEATS = 3
PREPARING_SECONDS = 2.0  # goal for the largest preset
DECODED = "JPEG 2000"  # takes longest to decode
SLICES = {"uncompressed": 300}
SLICES_COMPRESSED = 200
SERIES = {"uncompressed": 48, "JPEG-LS": 6}  # for the cores
FLOORS = {"bytes_alone": "reading the bytes alone", "bare_decoding": "pydicom, decoding alone"}
MONAI = {"monai_itk": "MONAI, ITKReader, 4 mm as ours", "monai_pydicom": "MONAI, PydicomReader, 4 mm as ours"}
SIMPLEITK = {"simpleitk": "SimpleITK, reading alone"}


def measure(folder: Path) -> Part:
    figures = []
    for name, syntax in SYNTAXES.items():
        if can_write(syntax):
            slices = SLICES.get(name, SLICES_COMPRESSED)
            figures += _one_series(write_chest(folder / name, syntax, slices=slices), name)
    figures += _large(folder)
    cores = [_cores(folder / name, folder / "many" / name, name) for name in SERIES]
    notes = [
        f"One synthetic series, 512 x 512, 16 bits; {SLICES['uncompressed']} slices uncompressed, else "
        f"{SLICES_COMPRESSED}. Each run in a fresh process; files in the page cache.",
        "Ours: find the series, check and read it, digest, lungs, crop, window, measurements for the data contract, "
        "tensor written to disk; one thread.",
        "Decoding: pixel_array of each file. MONAI: LoadImaged, EnsureChannelFirstd, Orientationd, Spacingd; neither "
        "checks nor writes anything. Both include their imports.",
        "large-gpu: 160 x 224 x 224 voxels from a grid of 1.5 mm; small-cpu: the default, 40 x 56 x 56 from 4 mm; both "
        "in a process that has done the same work once.",
        "Peak memory: of the whole process, including libraries.",
        f"Cores: {' or '.join(f'{n} {name}' for name, n in SERIES.items())} series, found, examined and stored, "
        "with all processes restricted to one or two cores. The time of the workers' imports, a few seconds for any "
        "number of series, is not included.",
    ]
    notes += [f"{name} left out: no encoder here." for name, syntax in SYNTAXES.items() if not can_write(syntax)]
    return Part(notes, figures + cores)


def _one_series(folder: Path, name: str) -> list[Figure]:
    """Make all comparisons for the uncompressed series, and those with the minimum work for the others."""
    is_main = name == "uncompressed"
    others = {**FLOORS, **SIMPLEITK, **MONAI} if is_main else FLOORS
    runs = runs_in_turn(REPEATS, ["ours", *others], folder)

    def figure(what: str, other: str, unit: str, value: str, target: str = "") -> Figure:
        ours, theirs = ([getattr(run, value) for run in runs[contender]] for contender in ("ours", other))
        return Figure(f"{what}, {name}", others[other], unit, ours, theirs, target)

    figures = []
    for other in others:
        figures.append(figure("folder to tensor", other, "processor s", "processor_s"))
        if other not in FLOORS:
            at_most = "at most 0.33" if other == "monai_itk" else ""
            figures.append(figure("folder to tensor", other, "wall s", "wall_s", at_most))
            figures.append(figure("with imports", other, "wall s", "with_imports_s"))
            figures.append(figure("peak memory", other, "MB", "peak_mb", "below 1" if other in MONAI else ""))
    return figures


def _large(folder: Path) -> list[Figure]:
    """Measure the largest preset: preparing alone, and ingestion of a series where most time goes into decoding."""
    warm = runs_in_turn(REPEATS, ["preparing_large"], folder / "uncompressed", is_warm=True)["preparing_large"]
    seconds = [run.processor_s for run in warm]
    goal = [PREPARING_SECONDS] * len(seconds)
    figures = [Figure("preparing a scan for large-gpu", "the goal", "processor s", seconds, goal, "at most 1")]
    if (folder / DECODED).is_dir():
        runs = runs_in_turn(REPEATS, ["ours_large", "ours"], folder / DECODED, is_warm=True)
        ours, theirs = ([run.processor_s for run in runs[name]] for name in ("ours_large", "ours"))
        title = f"folder to tensor for large-gpu, {DECODED}"
        figures.append(Figure(title, "for small-cpu", "processor s", ours, theirs, "at most 1.25"))
    return figures


def _cores(one: Path, folder: Path, name: str) -> Figure:
    """Compare series per minute on two cores and on one."""
    for number in range(1, SERIES[name] + 1):
        copy_chest(one, folder / str(number), number)
    series_a_minute: dict[int, list[float]] = {2: [], 1: []}
    for _ in range(REPEATS):
        for cores, own in series_a_minute.items():
            with on_cores(cores):
                own.append(SERIES[name] * 60 / run_fresh("ours_all", folder, is_warm=True).wall_s)
    return Figure(
        f"ingestion on two cores, {name}", "one core", "series/min", *series_a_minute.values(), "at least 1.7"
    )
