"""A day at a university hospital in fast forward: chest CT through a real PACS to the clinic's service and back.

    python benchmarks/run.py clinic_day                            400 scans, tenfold speed: two and a half hours
    python benchmarks/clinic_day.py --scans 40 --speed 100         a short look, not stored

Phantoms arrive at a PACS (Orthanc) as in a hospital's day (`clinic_day_scans`). The PACS routes each to the service by
C-STORE, tries again until it is accepted, and sends some of them twice. The service scores each scan and stores its
report in the PACS. Meanwhile the PACS is down twice for an hour of the day, and the service is killed three times with
all its processes (kill -9). At the end each scan must have exactly one answer with one report in the PACS, or one
refusal. The model has random weights: nothing is said about its answers.
"""

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from urllib.error import URLError

import numpy as np
from clinic_day_scans import ANSWERED, KINDS, Scan, busiest, plan, write
from common import Part, Table
from pydicom import dcmread

from federation.system.process import free_port
from models.network import build_network
from models.network_settings import NetworkSettings
from models.release import save_release
from pipeline.clinic import model_registry
from pipeline.clinic.records import Answer, Job
from pipeline.clinic.settings import Clinic

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.e2e.conftest import Command
from tests.e2e.orthanc import AET, DICOMWEB, ORTHANC, PASSWORD, USER, Orthanc
from tests.helpers.descriptions import description
from tests.pipeline.pacs.fake_pacs import OUR_TITLE

SCANS, SPEED, SEED = 400, 10.0, 1
PACS_DOWN_H = ((9.5, 10.5), (15.0, 16.0))  # from and to
KILLS_H = (7.5, 11.0, 17.0)  # of the service
TRY_AGAIN_S = 2.0  # of the PACS, where the service did not accept a series
LOOK_S = 5.0  # between two looks at the memory
PATIENCE_S = 1800.0  # after the last scan of the day
Look = tuple[float, float]  # hours, MB
_EVERYTHING = 10_000  # more than any number of jobs


@dataclass(frozen=True)
class Day:
    """How a day is played. `speed`: how much faster than a real one."""

    scans: int = SCANS
    speed: float = SPEED
    pacs_down_h: Sequence[tuple[float, float]] = PACS_DOWN_H
    kills_h: Sequence[float] = KILLS_H

    def seconds(self, hours: float) -> float:
        return hours * 3600 / self.speed


@dataclass
class Played:
    """What happened. `accepted`: when the service had accepted all images of a series, by its UID."""

    scans: dict[str, Scan] = field(default_factory=dict)
    accepted: dict[str, datetime] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    reports: Counter[str] = field(default_factory=Counter)  # in the PACS, by study
    memory: list[Look] = field(default_factory=list)

    def outcomes(self, series_uid: str) -> list[str]:
        """Return the states and codes of the jobs of a series that ended. A repeated answer is no second one."""
        ended = [job for job in self.jobs if job.series_uid == series_uid and job.state in ("answered", "no_score")]
        return list({job.answer_id or job.id: job.code or job.state for job in ended}.values())

    def faults(self) -> list[str]:
        """Return the scans that were lost, doubled, or ended in another way than they should, in words."""
        answers, found = Counter(answer.series_uid for answer in self.answers), []
        studies = {answer.series_uid: answer.study_uid for answer in self.answers}
        for uid, scan in self.scans.items():
            outcomes, reports = self.outcomes(uid), self.reports[studies.get(uid, "")]
            if scan.kind in ANSWERED:
                is_right = answers[uid] == reports == 1 and outcomes == ["answered"]
            else:
                is_right = answers[uid] == 0 and len(outcomes) == 1 and outcomes != ["answered"]
            if not is_right:
                found.append(f"{scan.kind}: {answers[uid]} answers, {reports} reports, ended as {outcomes}")
        return found


class Hospital:
    """A PACS and a clinic whose service can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.orthanc = Orthanc(folder / "orthanc", modalities={"clinic": [OUR_TITLE, "127.0.0.1", self.port]})
        self.pacs = threading.Lock()  # held while it is down
        self.clinic = self._clinic(folder / "clinic")
        self.service: Command | None = None

    def _clinic(self, folder: Path) -> Clinic:
        folder.mkdir(parents=True)
        (folder / "clinic.toml").write_text(
            f'[receiver]\nenabled = true\naet = "{OUR_TITLE}"\npacs_aet = "{AET}"\nport = {self.port}\n'
            f"[server]\nport = {free_port()}\n"
            f'[results]\nsend = "always"\nurl = "{self.orthanc.url}"\nuser = "{USER}"\npassword_file = "password"\n'
            "retry_seconds = 5\n"
        )
        (folder / "password").touch(mode=0o600)
        (folder / "password").write_text(PASSWORD)
        clinic = Clinic.open(folder)
        model = folder.parent / "model"
        save_release(model, build_network(NetworkSettings(), seed=3), description(trained_on_synthetic_data=False))
        kept = model_registry.add(clinic, model, by="benchmark")
        with clinic.store() as store:
            store.models.set_live(kept.sha256, by="benchmark")
        return clinic

    def serve(self) -> None:
        with self.orthanc.inside():
            self.service = Command(self.folder / "output.log", "serve", self.clinic.folder)

    def kill_service(self) -> None:
        if self.service is not None:
            self.service.kill()

    def memory_mb(self) -> float:
        """Return the proportional memory (PSS) of the service's processes."""
        assert self.service is not None
        found = 0
        for pid in self.service.family():
            with suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                found += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return found / 1024

    def receive(self, files: Sequence[Path]) -> str:
        """Store a scan in the PACS; return Orthanc's id of the series."""
        answers = [self.orthanc.rest("POST", "/instances", file.read_bytes()) for file in files]
        series: str = answers[0]["ParentSeries"]
        return series

    def route(self, series: str) -> bool:
        """Let the PACS send a series. Returns whether the service accepted all images."""
        body = json.dumps({"Resources": [series], "Synchronous": True, "Timeout": 30}).encode()
        with suppress(URLError, OSError):  # the service is down, or the PACS
            self.orthanc.rest("POST", "/modalities/clinic/store", body)
            return True
        return False

    def reports(self) -> Counter[str]:
        """Return the number of our reports in the PACS, by study."""
        query = {"Level": "Series", "Query": {"Modality": "SR"}, "Expand": True}
        found: Counter[str] = Counter()
        for series in self.orthanc.rest("POST", "/tools/find", json.dumps(query).encode()):
            study = self.orthanc.rest("GET", f"/series/{series['ID']}/study")
            found[study["MainDicomTags"]["StudyInstanceUID"]] += len(series["Instances"])
        return found


@contextmanager
def opened(folder: Path) -> Iterator[Hospital]:
    hospital = Hospital(folder)
    try:
        hospital.orthanc.start()
        hospital.serve()
        yield hospital
    finally:
        hospital.kill_service()
        hospital.orthanc.close()


def play(day: Day, folder: Path, show: Callable[[str], None] = print) -> Played:
    """Play a day, and wait until nothing is in progress."""
    played, stop = Played(), threading.Event()
    with opened(folder) as hospital:
        began = time.monotonic()
        threads = [
            threading.Thread(target=each, args=(day, hospital, played, began, stop, show))
            for each in (_watch_memory, _disturb)
        ]
        for thread in threads:
            thread.start()
        try:
            routing = _send_all(day, hospital, played, began, show)
            for thread in (*routing, threads[1]):
                thread.join()
            _wait_for_the_end(hospital, played)
            played.reports = hospital.reports()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    return played


def _send_all(
    day: Day, hospital: Hospital, played: Played, began: float, show: Callable[[str], None]
) -> list[threading.Thread]:
    """Let each scan arrive in its time; return the threads that route the scans to the service."""
    routing, scans = [], plan(day.scans, SEED)
    for scan in scans:
        folder = hospital.folder / "arriving"
        files = write(scan, folder)
        time.sleep(max(0.0, began + day.seconds(scan.at_h) - time.monotonic()))
        uid = str(dcmread(files[0], stop_before_pixels=True).SeriesInstanceUID)
        with hospital.pacs:
            series = hospital.receive(files)
        shutil.rmtree(folder)
        played.scans[uid] = scan
        routing.append(threading.Thread(target=_route, args=(day, hospital, played, uid, series)))
        routing[-1].start()
        if scan.number % 20 == 19:
            show(f"{scan.number + 1} of {day.scans} scans, {int(scan.at_h):02d}:{int(scan.at_h % 1 * 60):02d} o'clock")
    return routing


def _route(day: Day, hospital: Hospital, played: Played, uid: str, series: str) -> None:
    """Send a series until it is accepted; some are sent once more later."""
    _until_accepted(hospital, series)
    played.accepted[uid] = datetime.now(UTC)
    if played.scans[uid].kind == "sent twice":
        time.sleep(day.seconds(0.5))
        _until_accepted(hospital, series)


def _until_accepted(hospital: Hospital, series: str) -> None:
    while not hospital.route(series):
        time.sleep(TRY_AGAIN_S)


def _disturb(
    day: Day, hospital: Hospital, played: Played, began: float, stop: threading.Event, show: Callable[[str], None]
) -> None:
    """Take the PACS down and kill the service at their times."""
    down = [(start, _pacs_down, day.seconds(end - start)) for start, end in day.pacs_down_h]
    for at_h, fault, seconds in sorted([*down, *((at_h, _killed, 0.0) for at_h in day.kills_h)], key=lambda f: f[0]):
        if stop.wait(max(0.0, began + day.seconds(at_h) - time.monotonic())):
            return
        show(fault(hospital, seconds))


def _pacs_down(hospital: Hospital, seconds: float) -> str:
    with hospital.pacs:
        hospital.orthanc.kill()
        time.sleep(seconds)
        hospital.orthanc.start()
    return f"the PACS was down for {seconds:.0f} s"


def _killed(hospital: Hospital, _: float) -> str:
    hospital.kill_service()
    hospital.serve()
    return "the service was killed and started again"


def _watch_memory(
    day: Day, hospital: Hospital, played: Played, began: float, stop: threading.Event, _: Callable[[str], None]
) -> None:
    while not stop.wait(LOOK_S):
        with suppress(OSError):
            played.memory.append(((time.monotonic() - began) * day.speed / 3600, hospital.memory_mb()))


def _wait_for_the_end(hospital: Hospital, played: Played) -> None:
    """Wait until each scan has ended and each answer is delivered, or PATIENCE_S; take over jobs and answers."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with hospital.clinic.store() as store:
            played.jobs = store.jobs.newest(limit=_EVERYTHING)
            played.answers = store.answers.newest(limit=_EVERYTHING)
            waiting = store.deliveries.in_state("waiting")
        ended = {job.series_uid for job in played.jobs if job.ended_at is not None}
        is_busy = waiting or any(job.ended_at is None for job in played.jobs)
        if (ended >= set(played.scans) and not is_busy) or time.monotonic() > deadline:
            return
        time.sleep(1)


# --- results ----------------------------------------------------------------------------------------------


def measure(folder: Path) -> Part:
    """Play the whole day."""
    missing = [str(path) for path in (ORTHANC, DICOMWEB) if not path.is_file()]
    if missing:
        return Part([f"Left out: {', '.join(missing)} absent (Debian packages orthanc and orthanc-dicomweb)."], [])
    return report(Day(), play(Day(), folder))


def report(day: Day, played: Played) -> Part:
    """Return the tables of a day that was played."""
    faults = played.faults()
    notes = [
        f"{len(played.scans)} phantoms as a day's chest CT at {day.speed:g} times its speed, through Orthanc on the "
        f"same cores, by C-STORE; reports go back by STOW-RS. The PACS was down {len(day.pacs_down_h)} times, together "
        f"for {sum(end - start for start, end in day.pacs_down_h):g} hours of the day, and the service was killed "
        f"{len(day.kills_h)} times.",
        f"Scans that were lost, doubled or ended in another way than they should: **{len(faults)}**.",
        *faults,
    ]
    times, memory = _times(day, played), _memory(played)
    values = {"faults": faults, "seconds": dict(times), "memory_mb": memory}
    return Part(notes, [], [_outcomes(played), _waiting(times), _memory_table(memory)], values)


def _outcomes(played: Played) -> Table:
    rows = []
    for kind in KINDS:
        of_kind = [uid for uid, scan in played.scans.items() if scan.kind == kind]
        ended = Counter(outcome for uid in of_kind for outcome in played.outcomes(uid))
        rows.append([kind, str(len(of_kind)), ", ".join(f"{code} {count}" for code, count in ended.most_common())])
    return Table("How the scans ended", ["scan", "scans", "ended as"], rows)


def _times(day: Day, played: Played) -> list[tuple[str, list[float]]]:
    """Return seconds from the last accepted image of a scan to its answer, by part of the day."""
    done = {answer.series_uid: answer.created_at for answer in played.answers}
    peak = busiest(list(played.scans.values()))
    parts: list[tuple[str, Callable[[float], bool]]] = [
        ("the whole day", lambda at_h: True),
        (f"the busiest hour ({peak} to {peak + 1} o'clock)", lambda at_h: peak <= at_h < peak + 1),
        ("0 to 6 o'clock", lambda at_h: at_h < 6),
    ]
    return [
        (
            name,
            sorted(
                (done[uid] - played.accepted[uid]).total_seconds()
                for uid, scan in played.scans.items()
                if uid in done and is_in(scan.at_h)
            ),
        )
        for name, is_in in parts
    ]


def _waiting(times: list[tuple[str, list[float]]]) -> Table:
    rows = [
        [name, str(len(each)), *(f"{value:.0f} s" for value in (median(each), np.quantile(each, 0.95), max(each)))]
        for name, each in times
        if each
    ]
    head = ["arrived", "answers", "median", "95 %", "longest"]
    return Table("From the last image to the answer, 10 s of it without a new image", head, rows)


def _memory(played: Played) -> dict[str, float]:
    """Return the median memory of the service in three hours between the second kill and the third."""
    parts = {"12 to 13 o'clock": (12, 13), "14 to 15 o'clock": (14, 15), "16 to 17 o'clock": (16, 17)}
    looks = {name: [mb for at_h, mb in played.memory if start <= at_h < end] for name, (start, end) in parts.items()}
    return {name: round(median(each), 1) for name, each in looks.items() if each} | {
        "highest": round(max((mb for _, mb in played.memory), default=0.0), 1)
    }


def _memory_table(memory: dict[str, float]) -> Table:
    rows = [[name, f"{mb:.0f} MB"] for name, mb in memory.items()]
    return Table("Memory of the service's processes together (PSS), medians", ["when", "memory"], rows)


def main() -> None:
    from run import as_stored, circumstances, table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=SCANS)
    parser.add_argument("--speed", type=float, default=SPEED)
    chosen = parser.parse_args()
    day, before = Day(chosen.scans, chosen.speed), circumstances()
    with tempfile.TemporaryDirectory() as folder:
        made = report(day, play(day, Path(folder), lambda line: print(line, flush=True)))
    print(table("clinic_day", as_stored(made, before)))
    sys.exit(bool(made.values["faults"]))


if __name__ == "__main__":
    main()
