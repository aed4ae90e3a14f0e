"""The rows of stoic2021.py: the models of one study, each trained once, and their answers for all test patients."""

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from stoic2021_baseline import Recipe, train_baseline_port
from stoic2021_sites import Say

from federation.coordinator.baselines import pooled_examples, train_baseline
from federation.coordinator.rehearsal import rehearse
from federation.protocol.study_config import Study
from federation.runs.launch import launch, resume, server_of
from federation.runs.run_folder import read_note, read_study, run_names
from models.compute import Compute
from models.network_settings import LABELS
from models.release import load_release
from pipeline.site.folder import Site
from pipeline.training.train import predict

FEDERATED, POOLED, PORT = "federated", "pooled", "published baseline, our port"
ALONE = " alone"
GROUP = "stoic2021"  # of the runs


@dataclass(frozen=True)
class Answers:
    """What one model says of the test patients.

    `logits`: shape (patients, labels). `platt`: shape (labels, 2), slope and intercept of the calibration on validation
    patients, NaN where there is none. `seconds`: wall time of the call that trained it, with the start of a simulation;
    of an interrupted training, of its last part.
    """

    logits: NDArray[np.float32]
    platt: NDArray[np.float64]
    seconds: float

    @classmethod
    def read(cls, file: Path) -> "Answers":
        with np.load(file) as stored:
            return cls(stored["logits"], stored["platt"], float(stored["seconds"]))

    def write(self, file: Path) -> None:
        part = file.with_suffix(".part.npz")
        np.savez(part, logits=self.logits, platt=self.platt, seconds=self.seconds)
        part.rename(file)


@dataclass(frozen=True)
class Experiment:
    """The models of one study on the same sites. `folder`: where all of them are; `sites`: the sites' folders.

    `in_process`: federated runs have no processes of Flower. The weights are the same; an interrupted run begins again.
    """

    study: Study
    folder: Path
    sites: Sequence[Path]
    say: Say
    in_process: bool = False

    @classmethod
    def open(
        cls, out: Path, split: str, study: Study, sites: Sequence[Path], say: Say, *, in_process: bool = False
    ) -> "Experiment":
        """Return the experiment with these settings; another setting has another folder."""
        digest = hashlib.sha256(study.with_seed(0).model_dump_json().encode()).hexdigest()[:12]
        folder = out / "models" / f"{split}-{len(sites)}-{digest}"
        (folder / "answers").mkdir(parents=True, exist_ok=True)
        return cls(study, folder, sites, say, in_process)

    @property
    def server(self) -> Path:
        return self.folder / "server"

    def rows(self) -> list[str]:
        """Return the rows with the study's own network."""
        return [FEDERATED, POOLED, *(site.name + ALONE for site in self.sites)]

    def answers(self, row: str, seed: int, recipe: Recipe) -> Answers:
        """Return what a model says, after training it if it was not trained yet. `recipe`: of the row PORT."""
        digest = f"-{recipe.digest}" if row == PORT else ""
        file = self.folder / "answers" / f"{row.replace(', ', '-').replace(' ', '-')}{digest}-{seed}.npz"
        if not file.exists():
            self.say(f"{row}, seed {seed}")
            (self._port(seed, recipe) if row == PORT else self._ours(row, seed)).write(file)
        return Answers.read(file)

    def _ours(self, row: str, seed: int) -> Answers:
        began = time.perf_counter()
        release = load_release(self.release(seed) if row == FEDERATED else self._together(row, seed))
        seconds = time.perf_counter() - began
        compute = Compute.open(Site.open(self.sites[0]).settings.compute)
        test = pooled_examples([Site.open(site) for site in self.sites], self.study, "test")
        logits = predict(release.network, test, compute=compute)
        fits = release.description.calibration  # of a label with too few patients, a run has none
        platt = [(fits[label].slope, fits[label].intercept) if label in fits else (np.nan, np.nan) for label in LABELS]
        return Answers(logits, np.array(platt), seconds)

    def _together(self, row: str, seed: int) -> Path:
        """Train on all sites' patients in one place, or on one site's, as `fedthorax study baseline` does."""
        folder = self.folder / "baselines" / f"{row.replace(' ', '-')}-{seed}"
        if not folder.exists():
            part = folder.with_name(folder.name + ".part")
            chosen = [Site.open(site) for site in self.sites if row in (POOLED, site.name + ALONE)]
            train_baseline(self.study.with_seed(seed), chosen, part, threads=os.cpu_count() or 1)
            part.rename(folder)
        return folder

    def run_of(self, seed: int) -> Path | None:
        """Return the folder of the seed's run, the complete one if there are several."""
        wanted = self.study.with_seed(seed)
        runs = [self.server / "runs" / name for name in run_names(self.server)]
        found = [run for run in runs if read_study(run) == wanted]
        return max(found, key=lambda run: read_note(run).ended == "completed", default=None)

    def release(self, seed: int) -> Path:
        """Run the study in a simulation, or go on with its interrupted run; return the candidate release.

        Raises Refusal: those of `fedthorax study run`.
        """
        run = self.run_of(seed)
        is_complete = run is not None and read_note(run).ended == "completed"
        if not is_complete and self.in_process:
            run = rehearse(self.study.with_seed(seed), self.server, self.sites, group=GROUP)
        elif not is_complete:
            with server_of(self.server, self.sites):
                if run is None:
                    done = launch(self.study.with_seed(seed), self.server, self.say, group=GROUP)
                else:
                    done = resume(run.name, self.server, self.say)
            run = self.server / "runs" / done.run
        assert run is not None
        return run / "release"

    def _port(self, seed: int, recipe: Recipe) -> Answers:
        began = time.perf_counter()
        sites = [Site.open(site) for site in self.sites]
        prepared = self.folder.parents[1] / "baseline" / recipe.preparation
        logits, platt = train_baseline_port(self.study, sites, prepared, recipe, seed=seed, say=self.say)
        return Answers(logits, platt, time.perf_counter() - began)
