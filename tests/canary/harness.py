"""A federation with one watched hospital: real processes, one network link, and a capture of all its traffic."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.phantom.generate import make_hospitals
from pipeline.site.folder import Site
from tests.canary.cable import SERVER, Cable, Tap
from tests.canary.leaks import PLANTED
from tests.canary.plant import planted, rename, with_tensors
from tests.canary.recording import copies
from tests.canary.scanner import Hit, Scanner
from tests.canary.submit import leaking_app
from tests.canary.tls import read_secrets
from tests.canary.traffic import Outgoing, outgoing
from tests.e2e.conftest import FEDTHORAX, Command, for_few_patients

INGRESS, ELSEWHERE = 8443, 9999  # ports of the server: its ingress, and one to which a leak connects
WATCHED, OTHER = "north", "south"
THIRD = "west"  # only in a masked study, which needs three hospitals
PLAINTEXT = "the plaintext in the gateway"
_SECONDS_A_RUN, _SECONDS_A_ROUND = 400, 150  # time limits for a machine under load
_HOME = Path(__file__).parents[2]
_STUDY = """
[study]
name = "canary"
rounds = {rounds}
local_epochs = 1
sites = {sites}
quorum = {quorum}
seed = {seed}
wait_s = 90
round_timeout_s = 300
synthetic = true

[network]
architecture = "resnet10"
widen_factor = 0.125

[evaluation]
shortcut_audit = {audit}
"""
_MASKED = """
[strategy]
name = "FedAvg"

[aggregation]
secure = true
"""


@dataclass
class Trial:
    """A time span from the start of the watched site's node to its end, with what left the site in that time.

    `rounds`: for each round, the code with which the site was refused, or "" if its reply was accepted. `plaintext`: of
    a masked study, the bytes of all replies that the site's gateway was about to mask, `in_plaintext` what is in them.
    """

    name: str
    masked: bool = False
    plaintext: list[int] = field(default_factory=list)
    masked_rounds: int = 0
    in_plaintext: list[Hit] = field(default_factory=list)
    rounds: list[str] = field(default_factory=list)
    out: Outgoing = field(default_factory=Outgoing)
    hits: list[Hit] = field(default_factory=list)


class Running(Command):
    """A running command at one end of the link."""

    def __init__(self, log: Path, command: Sequence[str], environment: dict[str, str]) -> None:
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, cwd=_HOME, env=environment
            )


class Watched:
    """Context manager: a server, a watched site and another site that is not watched.

    The data of every patient of the watched site is planted. Each of `leaks` takes one of the first patients. With
    `masked`, there is a third site, and the studies mask; the watched gateway keeps what it is about to mask.
    """

    def __init__(
        self, folder: Path, *, patients: int, leaks: Sequence[str], sandbox: bool = True, masked: bool = False
    ) -> None:
        folder.mkdir()
        self.folder = folder
        self._sandbox, self._masked = sandbox, masked
        self._others = (OTHER, THIRD) if masked else (OTHER,)
        self._studies = 0
        self.leaks = list(leaks)
        self.server, self.site = folder / "server", folder / "sites" / WATCHED
        self._patients = patients
        self._secrets = folder / "tls-secrets"
        self._stack = ExitStack()
        self._started: list[Running] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._prepare()
            self.cable = stack.enter_context(Cable())
            stack.callback(self._end_all)
            self._listen_elsewhere()
            self._start("server", "start", self.server).wait_for("The server is up", seconds=300)
            for name in self._others:
                self._join(name)
                self.approve(name)
                self._start("node", "start", self.folder / "sites" / name).wait_for("is online", seconds=300)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    # --- preparation --------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Create the folders of hospitals, sites and server, the data that the leaks may take, and the scanner."""
        counts = [self._patients, *(8 for _ in self._others)]
        north, *others = make_hospitals(
            self.folder / "hospitals", patients=counts, seed=5, defects=False, anatomy="template"
        )
        self.patients = rename(north, seed=5)
        for hospital in (north, *others):
            site = self.folder / "sites" / hospital.name
            self._run([FEDTHORAX, "node", "init", str(site), "--from", str(hospital)])
            for_few_patients(site)  # also its key: with a random one, 8 patients may have fewer than two for training
            # Most leaks are refused, so the watched hospital has no accepted round for long.
            missed = len(self.leaks) + 1
            _edit(site / "site.toml", "[gateway]\n", f"[gateway]\nmax_missed_rounds = {missed}\n")
            self._run([FEDTHORAX, "node", "ingest", str(site)])
        if not self._sandbox:
            path = self.site / "site.toml"
            path.write_text(path.read_text() + '\n[sandbox]\nkind = "none"\naccepted_by = "the canary proof"\n')
        self._run([FEDTHORAX, "server", "init", str(self.server), "--host", SERVER, "--port", str(INGRESS)])
        site = Site.open(self.site)
        self.patients = with_tensors(site, self.patients)
        assert len(self.patients) >= len(self.leaks), "there are fewer patients than leaks"
        self.keys = [*self.leaks, *(f"patient {k}" for k in range(len(self.leaks) + 1, len(self.patients) + 1))]
        self.planted = [
            each for key, patient in zip(self.keys, self.patients, strict=True) for each in planted(site, patient, key)
        ]
        self.scanner = Scanner(self.planted)
        loot = [(name, self._loot(number)) for number, name in enumerate(self.leaks)]
        (self.site / "cohort" / PLANTED).write_text(json.dumps(loot))
        self.app = leaking_app(self.folder / "app")

    def _loot(self, number: int) -> dict[str, object]:
        patient = self.patients[number]
        return {
            "name": patient.name,
            "identifier": patient.identifier,
            "uid": patient.uids[0],
            "laboratory": patient.laboratory,
            "tensor": patient.tensor,
            "source": str(patient.scan),
            "drops": [str(path) for path in self.drops(number)],
            "host": SERVER,
            "port": ELSEWHERE,
        }

    def drops(self, number: int) -> list[Path]:
        """Return the paths to which the leak of this number tries to write a file."""
        name = f"canary-{os.getpid()}-{number}"
        return [folder / name for folder in (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), self.folder, self.site)]

    # --- processes ----------------------------------------------------------------------------------------

    def _environment(self, end: str) -> dict[str, str]:
        """Return the environment. Only processes of the watched site log the secrets of their TLS connections."""
        return {**os.environ} | ({"SSLKEYLOGFILE": str(self._secrets)} if end == WATCHED else {})

    def _at(self, end: str, *command: str) -> list[str]:
        return self.cable.at_site(*command) if end == WATCHED else self.cable.at_server(*command)

    def _start(self, *arguments: str | Path, end: str = OTHER) -> Running:
        return self._start_command([FEDTHORAX, *map(str, arguments)], end)

    def _start_command(self, command: Sequence[str], end: str = OTHER) -> Running:
        log = self.folder / f"output-{len(self._started)}.log"
        running = Running(log, self._at(end, *command), self._environment(end))
        self._started.append(running)
        return running

    def _listen_elsewhere(self) -> None:
        """Listen on a second port and accept what a leak sends past the ingress, which only the sandbox can stop."""
        empty = self.folder / "elsewhere"
        empty.mkdir()
        where = [str(ELSEWHERE), "--bind", SERVER, "--directory", str(empty)]
        self._start_command([sys.executable, "-u", "-m", "http.server", *where]).wait_for("Serving HTTP", seconds=300)

    def _end_all(self) -> None:
        for running in reversed(self._started):
            running.interrupt()

    def _ok(self, *arguments: str | Path, end: str = OTHER) -> str:
        return self._run(self._at(end, FEDTHORAX, *map(str, arguments)), self._environment(end))

    def _run(self, command: Sequence[str], environment: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False, cwd=_HOME, env=environment
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _join(self, name: str) -> None:
        code = json.loads(self._ok("server", "enrol", self.server, name, "--json"))["code"]
        self._ok("node", "join", self.folder / "sites" / name, code, "--as", name, end=name)

    # --- trials -------------------------------------------------------------------------------------------

    @contextmanager
    def watch(self, name: str) -> Iterator[Trial]:
        """Context manager: capture the traffic of the link, and scan it at the end."""
        trial = Trial(name, self._masked)
        before = copies(self.site)
        tap = Tap(self.cable, self.folder / f"{name.replace(' ', '-')}.pcap")
        try:
            yield trial
        finally:
            missing = tap.stop()
        assert missing == 0, f"{missing} frames were not captured"
        trial.out = outgoing(tap.file, self.cable.site_address(), read_secrets(self._secrets), INGRESS)
        found = {
            replace(hit, disguise=f"{part}: {hit.disguise}")
            for part, content in trial.out.parts.items()
            for hit in self.scanner.scan(bytes(content))
        }
        trial.hits = sorted(found)
        for copy in sorted(set(copies(self.site)) - set(before)):
            content = copy.read_bytes()
            trial.plaintext.append(len(content))
            trial.masked_rounds += "-train-" in copy.name
            hits = self.scanner.scan(content)
            trial.in_plaintext += [replace(hit, disguise=f"{PLAINTEXT}: {hit.disguise}") for hit in hits]

    def join(self) -> Trial:
        """Enrol the watched site in the study. For masked studies, all sites then approve the list of hospitals."""
        with self.watch("joining") as trial:
            self._join(WATCHED)
            if self._masked:
                self._approve_peers()
        return trial

    def _approve_peers(self) -> None:
        sites = {name: self.folder / "sites" / name for name in (WATCHED, *self._others)}
        for name, site in sites.items():
            self._ok("node", "peers", site, end=name)  # presents the key of the site's gateway
        for name, site in sites.items():
            code = json.loads(self._ok("node", "peers", site, "--json", end=name))["code"]
            self._ok("node", "approve-peers", site, code, end=name)

    @contextmanager
    def node(self) -> Iterator[Running]:
        """Context manager: run the node of the watched site."""
        if self._masked:
            node = self._start_command([sys.executable, "-m", "tests.canary.recording", str(self.site)], WATCHED)
        else:
            node = self._start("node", "start", self.site, end=WATCHED)
        try:
            node.wait_for("is online", seconds=300)
            yield node
        finally:
            node.interrupt()

    def study(self, rounds: int, *, app: Path | None = None, audit: bool = True) -> Running:
        """Start a study. `app`: the app to run instead of the released one.

        `audit`: with the shortcut audit. It follows the rounds, so a site that is refused or gone has no part in it.
        """
        path = self.folder / "study.toml"
        self._studies += 1  # a sum of updates of one model is revealed once, so each study begins with another one
        sites, quorum = (3, 3) if self._masked else (2, 1)
        audited = str(audit).lower()
        text = _STUDY.format(rounds=rounds, sites=sites, quorum=quorum, seed=self._studies, audit=audited)
        path.write_text(text + (_MASKED if self._masked else ""))
        for name in (WATCHED, *self._others):
            self._ok("node", "approve-study", self.folder / "sites" / name, path, "--yes", end=name)
        if app is None:
            return self._start("study", "run", path, "--server", self.server)
        command = [sys.executable, "-m", "tests.canary.submit", *map(str, (app, path, self.server))]
        return self._start_command(command)

    def finish(self, run: Running, trial: Trial, rounds: int) -> None:
        """Wait for the end of the study. Return the result of the watched site in each round."""
        assert run.wait(seconds=_SECONDS_A_RUN + _SECONDS_A_ROUND * rounds) == 0, run.text()
        name = run.wait_for(r"canary-[0-9a-f]{8}", seconds=300)
        history = json.loads((self.server / "runs" / name / "history.json").read_text())
        trial.rounds += [entry["refused"].get(WATCHED, "") for entry in history if "round" in entry]

    def clean(self, rounds: int, name: str = "clean run") -> Trial:
        """Trial: the released app runs without errors."""
        with self.watch(name) as trial, self.node():
            self.finish(self.study(rounds), trial, rounds)
        return trial

    def _wait_until_missed(self) -> None:
        """Wait until the server knows that the watched site's node is gone. Until then it refuses another node."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            sites = json.loads(self._ok("server", "sites", self.server, "--json"))
            if not any(site["online"] for site in sites if site["site"] == WATCHED):
                return
            time.sleep(1)
        raise AssertionError("the server still takes the killed node for present")

    def refused(self) -> Trial:
        """Trial: an app that leaks data and that the site has not approved."""
        with self.watch("refused run") as trial, self.node():
            self.finish(self.study(1, app=self.app, audit=False), trial, 1)
        return trial

    def crash(self) -> Trial:
        """Trial: a damaged scan makes the released app raise; then the whole node is killed and started again."""
        tensors = [self.site / "cohort" / "tensors" / patient.tensor for patient in self.patients]
        whole = [tensor.read_bytes() for tensor in tensors]
        for tensor, content in zip(tensors, whole, strict=True):
            tensor.write_bytes(content[: len(content) // 2])
        with self.watch("crashed run") as trial:
            with self.node() as node:
                run = self.study(2, audit=False)
                run.wait_for("round 1 of 2", seconds=_SECONDS_A_RUN)
                time.sleep(2)
                node.kill()
            self.finish(run, trial, 2)
            self._wait_until_missed()
            with self.node():
                pass
        for tensor, content in zip(tensors, whole, strict=True):
            tensor.write_bytes(content)
        return trial

    def approve(self, name: str = WATCHED) -> None:
        """Approve the leaking app at a site."""
        self._ok("node", "approve", self.folder / "sites" / name, self.app, "--yes", end=name)

    def leak(self, name: str = "leaks") -> Trial:
        """Trial: the leaking app is approved, and tries one leak in each round.

        There is no shortcut audit: it follows the rounds, and the released app answers it, as in the clean run.
        """
        with self.watch(name) as trial, self.node():
            run = self.study(len(self.leaks), app=self.app, audit=False)
            self.finish(run, trial, len(self.leaks))
        return trial

    def source(self) -> bytes:
        """Return the site's own data, joined: the hospital's files that hold planted data, and the cohort."""
        hospital = self.folder / "hospitals" / WATCHED
        files = [*(patient.scan for patient in self.patients), *hospital.glob("*.csv")]
        files += [path for path in (self.site / "cohort").rglob("*") if path.is_file()]
        return b"".join(path.read_bytes() for path in files)


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path.name} has no {old!r}"
    path.write_text(text.replace(old, new, 1))
