"""The demo: the whole workflow on synthetic hospitals, on this machine, with the real components.

Three hospitals train; a fourth only tests. Their files are written, checked and ingested. A SuperLink and three
SuperNodes run a study over TLS, with secure aggregation, while local and pooled baselines train. The results are a
table, a figure, a scored scan and the experiment in MLflow. All files are in one folder. A second run keeps the
hospitals and trains again.
"""

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from configs import preset_files
from federation.approval.peers import PeerApprovals
from federation.cli import reasons
from federation.cli.console import progress_bar, say
from federation.cli.node_peers import fetched_roster
from federation.comparison.model_table import ALL, MINUS_EXPLAINED, Hospital, compare, markdown, write_results
from federation.enrolment.invitations import invite
from federation.enrolment.join import join, node_certificate
from federation.node import sandbox
from federation.node.start import start_node, wait_online
from federation.protocol.study_config import Study
from federation.runs.launch import Finished, launch
from federation.runs.results import FEDERATED
from federation.secure_aggregation.reasons import SECAGG_ROSTER
from federation.server.start import init_server, start_server
from federation.superlink.control import read_server_config
from federation.system.process import free_port
from models.network_settings import LABELS
from models.refusal import Refusal
from models.release import ATTACKS, load_release
from models.settings import load_settings
from pipeline.site.folder import Site, init_site, site_settings
from pipeline.system.atomic_files import write_atomically
from pipeline.system.worker_pool import WorkerPool

SEED = 4  # of the hospitals: each has three test and validation patients of each outcome, which a sum needs
TRAINING = ("north", "south", "west")
UNSEEN = "east"
UNSEEN_EXTRA = 100  # the unseen hospital has more patients: they cost no training, and make intervals narrower
ANATOMY: Final = "template"  # random bodies take ten times as long to draw, and more patients to learn from


@dataclass(frozen=True)
class Folders:
    """The folders of the demo."""

    root: Path

    def hospital(self, name: str) -> Path:
        return self.root / "hospitals" / name

    def site(self, name: str) -> Path:
        return self.root / "sites" / name

    @property
    def server(self) -> Path:
        return self.root / "server"

    @property
    def model(self) -> Path:
        return self.root / "model"


def run_demo(root: Path, *, patients: int) -> None:
    """Run the demo in `root`. Ctrl-C ends every process that it started. Raises Refusal E_DEMO_PATIENTS."""
    began = time.monotonic()
    require_enough(patients)
    folders = Folders(root.resolve())
    study = study_of_run(folders)
    step("1/6 Synthetic hospitals: CT series, laboratory and outcome files, with planted defects")
    _make_hospitals(folders, patients)
    step("2/6 Each hospital checks and ingests its own files")
    sites = {name: _ingest(folders, name) for name in (*TRAINING, UNSEEN)}
    step("3/6 A server and three hospitals' nodes over TLS; baselines train at the same time")
    with _baselines(study, folders) as baselines:
        finished = _federate(study, folders, sites)
        step("4/6 Baselines: each hospital alone, and all pooled (possible only with synthetic hospitals)")
        for baseline in baselines:
            say(f"  {baseline.result()} is trained")
    step("5/6 Every model at every hospital")
    _compare(study, folders, sites, finished)
    _report(folders, finished)
    step("6/6 One new scan is scored")
    _score(folders, sites[UNSEEN])
    _print_paths(folders, finished, time.monotonic() - began)


def study_of_run(folders: Folders) -> Study:
    """Return the demo's study, with another seed for each run in this folder: a gateway masks a first model once."""
    study = load_settings(preset_files()["demo"], Study)
    runs = folders.server / "runs"
    earlier = sum(1 for _ in runs.iterdir()) if runs.is_dir() else 0
    table = study.study.model_copy(update={"seed": study.study.seed + earlier})
    return study.model_copy(update={"study": table})


def require_enough(patients: int) -> None:
    """Refuse a number of patients with which the model could give no number, before anything is made.

    A model gives a number for a label only if each hospital has enough patients of both values among those that it
    calibrates and those that it tests with. PCR results are the more frequent label, and are drawn before the bodies.
    Patients with defects are not counted. Raises Refusal E_DEMO_PATIENTS.
    """
    with TemporaryDirectory() as folder:
        least = max(_least_patients(Path(folder), index) for index in range(len(TRAINING)))
    if patients < least:
        raise Refusal(reasons.DEMO_PATIENTS, patients=patients, least=least)


def _least_patients(folder: Path, index: int) -> int:
    """Return how many of a training hospital's patients it takes until its PCR results are enough."""
    from pipeline.phantom.generate import MIN_PATIENTS, drawn_patient

    name = TRAINING[index]
    site = init_site(folder / name, site_settings(None, name=name), key=_key(name))
    missing = Counter({(split, value): MIN_PATIENTS for split in ("validation", "test") for value in (False, True)})
    for number in count(1):
        patient, _ = drawn_patient(index, number, SEED)
        missing[site.split(site.pseudonym(patient.patient_id)), patient.pcr_positive] -= 1
        if not +missing:
            return number
    raise AssertionError("a case mix has both values")


def _key(name: str) -> bytes:
    """Return a site's key. A real site draws it at random. Here the splits must depend on the seed only."""
    return hashlib.sha256(f"synthetic {name} {SEED}".encode()).digest()


def step(text: str) -> None:
    """Print the heading of a step."""
    say(f"\n{text}")


def _make_hospitals(folders: Folders, patients: int) -> None:
    from pipeline.phantom.generate import make_hospitals

    counts = [patients] * len(TRAINING) + [patients + UNSEEN_EXTRA]
    wanted = {"seed": SEED, "patients": counts, "anatomy": ANATOMY}
    done = folders.root / "hospitals" / "complete.json"
    if done.exists() and json.loads(done.read_text()) == wanted:
        say("  they exist from an earlier run")
        return
    done.unlink(missing_ok=True)  # it is not true of what an interruption leaves
    with progress_bar("synthetic patients") as progress:
        # The demo's own folder. It is not empty after a demo that was interrupted or had other numbers of patients.
        make_hospitals(done.parent, patients=counts, seed=SEED, anatomy=ANATOMY, replaces=True, progress=progress)
    done.write_text(json.dumps(wanted))


def _ingest(folders: Folders, name: str) -> Site:
    """Create the site if it is new, ingest it, and compare the findings with the planted defects."""
    from pipeline.cohort.ingest import ingest
    from pipeline.doctor.checkup import judge
    from pipeline.preprocessing.preprocess_settings import Preprocessing

    if (folders.site(name) / "site.toml").exists():
        site = Site.open(folders.site(name))
    else:
        settings = site_settings(folders.hospital(name), name=name, threads=1)
        site = init_site(folders.site(name), settings, key=_key(name))
    with progress_bar(f"  {name}") as progress:
        assessment = ingest(site, Preprocessing(), progress)
    verdict = judge(site, assessment, folders.hospital(name) / "truth.json")
    say(
        f"  {name}: {len(assessment.patients)} patients accepted; defects found {verdict.found} of "
        f"{verdict.planted} planted (precision {verdict.precision:.2f}, recall {verdict.recall:.2f})"
    )
    return site


@contextmanager
def _baselines(study: Study, folders: Folders) -> Iterator[list[Future[str]]]:
    """Train the baselines in the background while the block runs."""
    from federation.coordinator.baselines import train_in_background

    jobs = {"pooled": list(TRAINING)} | {f"{name} alone": [name] for name in TRAINING}  # longest first
    with WorkerPool(os.cpu_count(), get_context("spawn")) as pool:
        try:
            yield [
                pool.submit(
                    train_in_background,
                    study,
                    [folders.site(name) for name in names],
                    folders.root / "baselines" / title,
                )
                for title, names in jobs.items()
            ]
        except BaseException:
            pool.end()
            raise


def _federate(study: Study, folders: Folders, sites: dict[str, Site]) -> Finished:
    """Start the server and the nodes, let them join, run the study, stop everything."""
    if not (folders.server / "server.toml").exists():
        init_server(folders.server, port=free_port())
    with ExitStack() as stack:
        stack.enter_context(start_server(folders.server))
        say(f"  the server is up on port {read_server_config(folders.server).port} of this machine, TLS")
        nodes = []
        for name in TRAINING:
            if not node_certificate(sites[name]).exists():
                join(sites[name], invite(folders.server, name))
            # Joining wrote the server's address into site.toml.
            sites[name] = site = _confined(Site.open(sites[name].folder))
            nodes.append(stack.enter_context(start_node(site)))
        for node in nodes:
            wait_online(node)
        say(f"  the nodes of {', '.join(TRAINING)} are online; {sandbox.describe(site)}")
        _approve_peers([sites[name] for name in TRAINING])
        finished = launch(study, folders.server, lambda line: say(f"  {line}"))
        for node in nodes:
            node.let_go()  # end all nodes at once; the stack would end them one after the other
        return finished


def _approve_peers(sites: Sequence[Site]) -> None:
    """Let each hospital approve the list of hospitals. Real ones compare its code by telephone first."""
    for site in sites:
        fetched_roster(site)  # presents the key of its gateway
    lists = [fetched_roster(site) for site in sites]
    if len({roster.code for roster in lists}) > 1:
        raise Refusal(SECAGG_ROSTER)
    for site, roster in zip(sites, lists, strict=True):
        PeerApprovals(site).approve(roster, by="the demo")
    say(f"  each hospital approves the list of hospitals, after they have compared its code, {lists[0].code}")


def _confined(site: Site) -> Site:
    """Return the site. If its code cannot be confined here, first write the setting that accepts that."""
    if site.settings.sandbox.kind == "none":
        return site
    try:
        sandbox.available(site)
        return site
    except Refusal as refusal:
        say(f"  {site.name}: {refusal} {refusal.remedy}")
        with (site.folder / "site.toml").open("a", encoding="utf-8") as settings:
            settings.write('\n[sandbox]\nkind = "none"\naccepted_by = "the demo: synthetic patients only"\n')
        return Site.open(site.folder)


def _compare(study: Study, folders: Folders, sites: dict[str, Site], finished: Finished) -> None:
    models = {f"{name} alone": folders.root / "baselines" / f"{name} alone" for name in TRAINING}
    models |= {"pooled": folders.root / "baselines" / "pooled", FEDERATED: Path(finished.release)}
    hospitals = [
        Hospital(sites[name], ALL if name == UNSEEN else ("test",), folders.hospital(name) / "truth.json")
        for name in (*TRAINING, UNSEEN)
    ]
    found = compare({title: load_release(path) for title, path in models.items()}, hospitals, study)
    write_results(found, folders.root)
    _keep_model(Path(finished.release), folders.model)
    say("\nSYNTHETIC hospitals: these results say nothing about real patients.")
    say(MINUS_EXPLAINED)
    for label in reversed(LABELS):
        say("\n" + markdown(found, label))


def _report(folders: Folders, finished: Finished) -> None:
    from federation.report.page import write_report
    from federation.runs.results import read_results

    write_report(read_results(folders.server / "runs" / finished.run), folders.root / "report")


def _keep_model(release: Path, model: Path) -> None:
    """Copy the newest candidate to the default model folder of `fedthorax score`."""
    model.mkdir(exist_ok=True)
    (model / ATTACKS).unlink(missing_ok=True)  # they were measured on another model
    for file in release.iterdir():
        write_atomically(model / file.name, file.read_bytes())


def _score(folders: Folders, unseen: Site) -> None:
    """Score one severe patient of the hospital that did not train."""
    from federation.cli.scoring import score_series

    truth = json.loads((folders.hospital(unseen.name) / "truth.json").read_text())
    patient = next(p for p in truth["patients"] if p["severe"] and p["pcr_positive"] and p["defect"] is None)
    scan = folders.hospital(unseen.name) / "ct" / patient["patient_id"]
    score_series([scan], model=folders.model, out=folders.root / "scored", as_json=False)


def _print_paths(folders: Folders, finished: Finished, seconds: float) -> None:
    lines: Sequence[tuple[str, object]] = (
        ("table", folders.root / "results.md"),
        ("figure", folders.root / "results.png"),
        ("report", folders.root / "report" / "report.html"),
        ("scored scan", folders.root / "scored" / "score.html"),
        ("model and its card", folders.model),
        ("experiment", finished.mlflow),
        ("clinician's page", f"{Path(sys.executable).with_name('fedthorax')} serve clinic --model {folders.model}"),
    )
    say(f"\nDone in {seconds:.0f} s.")
    for what, where in lines:
        say(f"  {what}: {where}")
