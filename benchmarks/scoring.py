"""Scoring of a DICOM folder: time and memory, also in the clinic by stage and until the first slice is shown.

It is compared with the minimum work for an answer, with reading alone, and with MONAI. The release has random weights,
and operating points by which no probability is low, so that each answer has a map. Another release calls all
probabilities low.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from chest import GRID, SYNTAXES, write_chest
from common import Figure, Part, Run, Table, on_cores, runs_in_turn, spread, wall_seconds
from first_slice import FIRST, OPENED, VIEWER, seconds_to_pictures
from fresh import peak_mb

from models.network import build_network
from models.network_settings import LABELS, NetworkSettings
from models.release import Release, save_release
from pipeline.clinic.pictures import planes, slice_png
from pipeline.clinic.records import Answer
from pipeline.clinic.results.write import REPORT
from pipeline.clinic.settings import Clinic
from pipeline.clinic.store import Store, new_id

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.helpers.descriptions import description

REPEATS = 3  # processes in turn
ANSWERS = 3  # answers of the clinic, after its first
CORES = 2
FLOOR, READING = "pydicom's decoding and the forward passes", "reading alone"
SIMPLEITK, MONAI = "SimpleITK, reading alone", "MONAI, DenseNet121 at 96³"
COMPRESSED = "JPEG lossless"  # most common in archives
STAGES = ("read", "prepare", "predict", "explain", "total")
PAIR = ["scoring", "decoding_and_forward"]
POLL_SECONDS = 0.01
_IN_WALL_TIME = ("decoding_and_forward", FLOOR, "wall s", "wall_s", "at most 1.3")
_IN_PROCESSOR_TIME = ("decoding_and_forward", FLOOR, "processor s", "processor_s", "at most 1.3")
NO_BROWSER = "Chromium or the page's viewer is not installed here (`make peers`): the page that waits is left out."


def measure(folder: Path, *, is_short: bool = False) -> Part:
    """The short form: an answer compared with decoding and a forward pass, only in processor time."""
    with on_cores(CORES):
        write_chest(folder / "series", SYNTAXES["uncompressed"])
        release = random_release(folder / "model")
        random_release(folder / "low", rule_out=1.0)
        return _short(folder) if is_short else _measure(folder, release)


def _short(folder: Path) -> Part:
    return Part([], [_figure(runs_in_turn(REPEATS, PAIR, folder, is_warm=True), *_IN_PROCESSOR_TIME)])


def _measure(folder: Path, release: Release) -> Part:
    figures, peaks_mb = _warm(folder)
    compressed = _compressed(folder)
    clinic = _in_the_clinic(folder, release)
    pictures = seconds_to_pictures(folder)
    answer_s = next(figure.ours for figure in figures if figure.unit == "wall s")
    rows = [
        _row("folder to answer, model loaded", "s", answer_s, "under 6"),
        _row("of that, beside other work: SHA-256 of the volume", "s", _hashing(), ""),
        _row("peak memory of that process", "MB", peaks_mb, "under 2000"),
        _row("in the clinic: queued to answered", "s", clinic["queued to answered"][1:], "under 6"),
        _row("in the clinic: peak memory of the worker", "MB", clinic["worker MB"][1:], "under 2000"),
        _row("in the clinic: answered to first slice drawn", "s", clinic["to first slice"][1:], "under 3"),
        *(_in_the_browser(pictures) if pictures else []),
    ]
    head = ["what", "unit", "median (least to most)", "goal"]
    tables = [Table("Wall time and memory", head, rows), _stages(clinic)]
    return Part([*_notes(), *([] if pictures else [NO_BROWSER])], [*figures, *compressed], tables)


def _in_the_browser(pictures: dict[str, list[float]]) -> list[list[str]]:
    """Table by what is shown; the first answer of a session, for which the page loads its viewer, is separate."""
    shown = {
        FIRST: ("answer stored to first slice on the page that waits", "under 3"),
        VIEWER: ("answer stored to full viewer on the page that waits", ""),
        OPENED: ("answered scan opened to first slice", "under 1"),
    }
    return [
        _row(f"{whose} of a session: {what}", "s", values, goal)
        for name, (what, goal) in shown.items()
        for whose, values in (("first answer", pictures[name][:1]), ("later answers", pictures[name][1:]))
    ]


def _stages(clinic: dict[str, list[float]]) -> Table:
    """Table of the seconds of each stage, cold and warm."""
    rows = [[*_row(each, "s", clinic[each][1:], "")[:3], f"{clinic[each][0]:.3g}"] for each in (*STAGES, "processor")]
    return Table("The worker, by stage", ["what", "unit", "warm: median (least to most)", "its first answer"], rows)


def _notes() -> list[str]:
    return [
        f"One synthetic series of 300 slices, 512 x 512, 16 bits, in the page cache; {CORES} cores.",
        "Ours: find the series, check and read it, digest, lungs, anatomy, lesion load, network, map; one thread for "
        "the network. Reading alone: find, check, read. Each in its own process that has done it once before.",
        "Decoding and the forward passes: pixel_array of each file, network and lung segmenter on ready tensors; "
        "one thread.",
        "MONAI: LoadImaged, EnsureChannelFirstd, Orientationd, Spacingd to 1.5 mm, ScaleIntensityRanged, Resized, "
        "network; no checks and no explanation; default number of threads.",
        "In the clinic: the warm worker process, from the queue to the stored answer: it scores, draws images, writes "
        "report and image for the PACS, all synced to disk. First slice drawn: when the page requests it.",
        "On the waiting page: `fedthorax serve` and headless Chromium on the same cores, WebGL in software; the scan "
        "is uploaded there, and the page polls every second for the answer.",
    ]


def random_release(folder: Path, *, rule_out: float = 0.0) -> Release:
    points = {label: {"rule_out": rule_out, "rule_in": max(0.5, rule_out)} for label in LABELS}
    return save_release(folder, build_network(NetworkSettings(), seed=1), description(operating_points=points))


def _warm(folder: Path) -> tuple[list[Figure], list[float]]:
    """Compare ours with reading alone and MONAI; and measure our peak memory."""
    others = ["scoring_low", "reading_alone", "simpleitk_alone", "monai_densenet"]
    runs = runs_in_turn(REPEATS, [*PAIR, *others], folder, is_warm=True)

    def figure(contender: str, against: str, unit: str, value: str, target: str = "") -> Figure:
        return _figure(runs, contender, against, unit, value, target)

    return [
        figure(*_IN_WALL_TIME),
        figure(*_IN_PROCESSOR_TIME),
        _figure(runs, *_IN_WALL_TIME, ", low: no map", whose="scoring_low"),
        figure("reading_alone", READING, "wall s", "wall_s", "at most 1.5"),
        figure("simpleitk_alone", SIMPLEITK, "wall s", "wall_s", "at most 1.5"),
        figure("monai_densenet", MONAI, "wall s", "wall_s", "at most 0.33"),
        figure("monai_densenet", MONAI, "processor s", "processor_s"),
        figure("monai_densenet", MONAI, "peak MB", "peak_mb"),
    ], [run.peak_mb for run in runs["scoring"]]


def _figure(
    runs: dict[str, list[Run]],
    contender: str,
    against: str,
    unit: str,
    value: str,
    target: str,
    name: str = "",
    *,
    whose: str = "scoring",
) -> Figure:
    ours, theirs = ([getattr(run, value) for run in runs[each]] for each in (whose, contender))
    return Figure(f"folder to answer{name}", against, unit, ours, theirs, target)


def _hashing() -> list[float]:
    volume = np.ones(GRID.shape, dtype=np.int16)
    (seconds,) = wall_seconds(REPEATS, lambda: hashlib.sha256(volume.data))
    return seconds


def _compressed(folder: Path) -> list[Figure]:
    """Measure the same scan as it is stored in archives."""
    write_chest(folder / "compressed/series", SYNTAXES[COMPRESSED])
    shutil.copytree(folder / "model", folder / "compressed/model")
    runs = runs_in_turn(2, [*PAIR, "reading_alone"], folder / "compressed", is_warm=True)
    return [
        _figure(runs, *_IN_WALL_TIME, f", {COMPRESSED}"),
        _figure(runs, "reading_alone", READING, "wall s", "wall_s", "at most 1.5", f", {COMPRESSED}"),
    ]


def _in_the_clinic(folder: Path, release: Release) -> dict[str, list[float]]:
    """Measure the clinic's worker: by measured stage, one value for each answer, the worker's first answer first."""
    (folder / "clinic").mkdir()
    clinic = Clinic.open(folder / "clinic")
    shutil.copytree(folder / "model", clinic.models / release.sha256)
    found: dict[str, list[float]] = {}
    worker = subprocess.Popen(
        [sys.executable, "-m", "pipeline.clinic.worker", clinic.folder],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        with clinic.store() as store:
            store.models.add(release.sha256, "bench", signed_by=None, by="bench")
            store.models.set_live(release.sha256, by="bench")
            _until(lambda: store.worker.get()[0] == "ready", worker)
            for _ in range(ANSWERS + 1):
                for name, value in _one_answer(clinic, store, folder / "series", worker).items():
                    found.setdefault(name, []).append(value)
    finally:
        worker.kill()
        worker.wait()
    return found


def _one_answer(clinic: Clinic, store: Store, series: Path, worker: subprocess.Popen[bytes]) -> dict[str, float]:
    job_id = new_id()
    shutil.copytree(series, clinic.scans / job_id)
    processor_s, began = _processor_s(worker.pid), time.perf_counter()
    job = store.jobs.add(job_id, source="upload", asked_by="bench")
    _until(lambda: store.jobs.get(job.id).ended_at is not None, worker)
    answered = time.perf_counter()
    answer = store.answers.get(store.jobs.get(job.id).answer_id or "")
    _draw_first(answer)
    (answer.folder / REPORT).unlink()  # the next scan is the same: with its report it would get this answer
    return {
        **answer.score["timing_seconds"],
        "processor": _processor_s(worker.pid) - processor_s,
        "queued to answered": answered - began,
        "to first slice": time.perf_counter() - answered,
        "worker MB": peak_mb(worker.pid),
    }


def _draw_first(answer: Answer) -> None:
    start = planes(answer.folder)["axial"]["start"]
    assert slice_png(answer.folder, "axial", start) and slice_png(answer.folder, "axial", start, "saliency")


def _until(is_so: Callable[[], bool], worker: subprocess.Popen[bytes]) -> None:
    while not is_so():
        if worker.poll() is not None:
            raise RuntimeError("the worker has ended")
        time.sleep(POLL_SECONDS)


def _processor_s(process: int) -> float:
    """Return the processor seconds of a process so far: utime and stime of proc(5)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _row(what: str, unit: str, values: Sequence[float], goal: str) -> list[str]:
    least, median, most = (f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in spread(values))
    return [what, unit, f"{median} ({least} to {most})", goal]
