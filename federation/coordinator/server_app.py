"""The ServerApp of a study: rounds, final evaluation, tracking, results and a candidate for release.

`rounds` trains, `final_evaluation` sends the evaluation requests to the sites, `checkpoint` stores files, `tracking`
logs to MLflow. All files of a run are in SERVER_DIR/runs/<run>/: study.json, checkpoints/, release/, results.json and
history.json. For each round, history.json lists the sites that took part, the refused sites with reasons, and the
head of each site's ledger.
"""

import errno
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from federation.approval.studies import study_digest
from federation.client.site_tasks import load_network
from federation.coordinator import reasons
from federation.coordinator.connected_sites import gather
from federation.coordinator.eager_grid import EagerGrid
from federation.coordinator.examined import Examined
from federation.coordinator.final_evaluation import Examination
from federation.coordinator.masked_questions import MaskedSums
from federation.coordinator.masked_study import MaskedStudy
from federation.coordinator.package_rehearsal import try_parts
from federation.coordinator.pretrained import save_start
from federation.coordinator.rounds import Model, Training
from federation.coordinator.site_agreement import shake_hands
from federation.coordinator.summed_evaluation import SummedExamination
from federation.coordinator.summed_questions import PlainSums, Sums
from federation.enrolment.peers import roster_of
from federation.protocol.first_weights import begun_sites, use_encoder
from federation.protocol.flat_weights import WEIGHTS
from federation.protocol.handshake import SiteAbout, most_patients
from federation.protocol.metric_allowlist import APPEARANCE_SIZE, LOSS
from federation.protocol.release_files import BEGINS_FROM, ENCODERS
from federation.protocol.study_config import Study
from federation.protocol.study_packages import allow_in_run
from federation.protocol.tensor_bounds import fixed_ranges, parts_of
from federation.runs.accepted_ledgers import newly_accepted
from federation.runs.failure import clear_failure, write_failure
from federation.runs.listing import final_values
from federation.runs.results import RESULTS, Results
from federation.runs.submission import MARK
from federation.runs.tracking import Tracker, hand_over_rest
from federation.secure_aggregation.reasons import SECAGG_ROSTER_SMALL
from federation.secure_aggregation.roster import MIN_PEERS
from federation.strategy.flower_strategies import is_robust, strategy_of
from federation.strategy.round_report import RoundReport, by_code, flags, kept_rounds
from federation.superlink.control import read_server_config
from models.description import Description, Privacy
from models.network import SeverityNetwork, build_network
from models.network_settings import LABELS
from models.refusal import Refusal
from models.release import Release, save_release
from pipeline.system.atomic_files import write_durably

HEADLINES = tuple(f"{kind}_{label}" for label in LABELS for kind in ("auroc", "auprc", "loss", "brier"))
# Errors of a file system that cannot be written: full, over quota, over a size limit, no permission, read-only.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
MANY = 8  # maximum number of sites named in one line
log = logging.getLogger("flwr")
app = ServerApp()


def say(text: str) -> None:
    """Print a line for those who follow the run."""
    log.info("%s%s", MARK, text)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run or resume the study in the run's configuration."""
    study = Study.model_validate_json(str(context.run_config["study"]))
    run = ServerRun(Path(os.environ["FEDTHORAX_SERVER_DIR"]), study, str(context.run_config["run"]), EagerGrid(grid))
    clear_failure(run.folder)
    try:
        run.execute()
    except Refusal as refusal:
        say(f"{refusal}. {refusal.remedy}")
        with suppress(OSError):  # the refusal is what ends the run
            write_failure(run.folder, refusal)
        raise
    except OSError as error:
        if error.errno not in _DISK:
            raise
        full = Refusal(reasons.SERVER_DISK, private=str(error))
        say(f"{full}. {full.remedy}")
        with suppress(OSError):
            write_failure(run.folder, full)
        raise full from error


@dataclass
class ServerRun:
    """One run of a study on the server."""

    server_folder: Path
    study: Study
    name: str
    grid: EagerGrid

    @property
    def folder(self) -> Path:
        return self.server_folder / "runs" / self.name

    def execute(self) -> None:
        """Run all remaining rounds, then the final evaluation; write the results and the candidate."""
        table = self.study.study
        allow_in_run(self.study, self.folder)
        try_parts(self.study)
        use_encoder(self.study, self.folder / ENCODERS)
        self.robust = is_robust(strategy_of(self.study))
        self.training = Training(
            self.study, self.folder / "checkpoints", self.name, self._after_round, self.folder / BEGINS_FROM
        )
        self._print_start()
        hand_over_rest(self.server_folder, say)
        self.tracker = Tracker(self.server_folder, self.study, self.name, say)
        self.tracker.begin({"fedthorax.version": version("fedthorax"), "synthetic": str(table.synthetic).lower()})
        try:
            self._accept_ledgers()
            sites = gather(self.server_folder, self.grid, table.sites, table.wait_s, self.history)
            self.sites = replace(sites, precision=self.study.wire.precision)
            say(f"{len(self.sites.nodes())} of {table.sites} sites are there")
            self.about = self._handshake()
            if self.study.sums_answers:
                self.training.masked = self._masked()
            model = self.training.execute(self.sites)
            if self.training.stopped_early:
                say(f"stopped after round {self.training.state.round}: {self._stopping()}")
            self._finish(model)
        except BaseException:
            self.tracker.end(completed=False)
            raise
        self.tracker.end(completed=True)

    @property
    def history(self) -> list[Mapping[str, Any]]:
        return self.training.history

    def _print_start(self) -> None:
        for number in self.training.damaged_rounds:
            say(f"the checkpoint of round {number} is damaged; the one before is used")
        if self.training.state.round:
            say(f"going on after round {self.training.state.round} of {self.study.study.rounds}")

    def _accept_ledgers(self) -> None:
        """Add to the history which ledgers the office accepted although they were cut. Raises Refusal E_RUN_FILES."""
        for entry in newly_accepted(self.folder, self.history):
            say(f"the ledger of {entry['sites'][0]} was cut before line {entry['cut']['lines']}: {entry['note']}")
            self.history.append(entry)

    def _stopping(self) -> str:
        rule = self.study.stopping
        assert rule is not None
        return f"mean validation {rule.figure} has not risen by {rule.least_gain} for {rule.patience_rounds} rounds"

    def _handshake(self) -> dict[str, SiteAbout]:
        """Check that the sites agree on data contract and golden volume before the study starts.

        Sites of another version and sites without labels are left out of the run. Raises Refusal: E_SITES_UNLIKE,
        E_HANDSHAKE_QUORUM.
        """
        agreed = shake_hands(self.sites, self.study)
        for line in by_code(agreed.entry["refused"]):
            say(f"handshake without {line}")
        for why in agreed.left_out.values():
            say(f"{why}; the run goes on without this site")
        self.sites = self.sites.without(agreed.left_out)
        say(f"{len(agreed.about)} sites are alike: {_cohorts(agreed.about)}")
        self.history.append(agreed.entry)
        return agreed.about

    def _masked(self) -> MaskedStudy | None:
        """Return what masked rounds need to know; None in a simulation. Raises Refusal E_SECAGG_ROSTER_SMALL."""
        if read_server_config(self.server_folder).simulated_sites:
            apart = ", and not in groups" if self.study.aggregation.groups else ""
            what = "updates" if self.study.aggregation.secure else "answers"
            say(f"one machine simulates all sites: their {what} are summed without masks{apart}")
            return None
        roster = roster_of(self.server_folder)
        groups = self.study.aggregation.groups
        needed = MIN_PEERS * max(groups, 1)
        if len(roster.members) < needed:
            raise Refusal(SECAGG_ROSTER_SMALL, needed=needed, present=len(roster.members))
        enrolled = {self.sites.names[node]: number for node, number in self.sites.enrolled.items()}
        patients = [max(most_patients(each.patients), enrolled.get(site) or 0) for site, each in self.about.items()]
        what = f"the sums of {groups} groups of" if groups else "their sum over"
        masked = "updates are masked" if self.study.aggregation.secure else "figures and answers are masked"
        say(f"{masked}: the server learns {what} {len(roster.members)} hospitals")
        return MaskedStudy(
            run=self.name,
            study=study_digest(self.study.model_dump_json()),
            roster=roster,
            patients=sum(patients),
            folder=self.folder / "masked",
            names=self.sites.names,
            round_seconds=self.study.study.round_timeout_s,
            server_folder=self.server_folder,
            groups=groups,
            fixed=self._fixed(),
            is_private=self.study.privacy is not None,
        )

    def _fixed(self) -> tuple[tuple[int, int], ...]:
        """Return the ranges of the packed weights that training does not change."""
        study = self.study
        network = build_network(study.network, seed=study.study.seed)
        parts = parts_of(network, learning_rate=study.training.learning_rate, epochs=study.epochs_a_round)[WEIGHTS]
        return tuple(fixed_ranges(parts, self.training.state.arrays[WEIGHTS].size))

    def _write_history(self) -> None:
        write_durably(self.folder / "history.json", json.dumps(self.history, indent=1).encode())

    def _after_round(self, report: RoundReport, entry: Mapping[str, Any], saved: Path) -> None:
        """Print one round and log it to MLflow."""
        say(round_line(report, entry, self.study.study.rounds))
        self._write_history()
        self.tracker.log_round(report, self.sites.names)
        if report.round == self.study.study.rounds or self.training.stopped_early:
            self.tracker.add_artifacts(saved, "checkpoint")

    def _finish(self, model: Model) -> None:
        """Evaluate the model at the sites; write the results and the candidate. Raises Refusal E_NOTHING_LEARNT."""
        rounds = [entry for entry in self.history if "round" in entry]
        if not kept_rounds(rounds):
            codes = sorted({entry["lost_for"] for entry in rounds if entry["lost_for"]})
            raise Refusal(reasons.NOTHING_LEARNT, codes=", ".join(codes) or "none was accepted")
        begun = begun_sites(self.study, self.folder / BEGINS_FROM)
        trained_at = sorted({*begun, *(site for entry in rounds for site in entry["sites"])})
        network = load_network(self.study, model.arrays, model.buffers)
        if self.study.network.pretrains:
            self._finish_pretraining(network, rounds, trained_at)
            return
        examined = self._examined(model, network.features, trained_at)
        self._write_history()
        calibrated = examined.calibrated
        points, missing = calibrated.operating_points(), calibrated.missing_points()
        release = save_release(
            self.folder / "release",
            network,
            Description(
                network=self.study.network,
                preprocessing=self.study.preprocessing.model_dump(mode="json"),
                calibration=dict(calibrated.deployed.calibration),
                operating_points=points,
                missing_points=missing,
                familiarity=calibrated.familiarity,
                study=self.study.study.name,
                run=self.name,
                rounds=len(kept_rounds(rounds)),
                sites=len(trained_at),
                strategy=_strategy(self.study),
                software=f"fedthorax {version('fedthorax')}",
                trained_on_synthetic_data=self.study.study.synthetic,
                metrics={f"mean_{k}": v for k, v in examined.means.items() if k in HEADLINES},
                privacy=self._privacy(rounds),
            ),
        )
        results = Results(
            run=self.name,
            software=f"fedthorax {version('fedthorax')}",
            synthetic=self.study.study.synthetic,
            study=self.study,
            sites=self.about,
            history=[dict(entry) for entry in self.history],
            models=list(examined.models),
            calibration=dict(calibrated.deployed.calibration),
            operating_points=points,
            missing_points=missing,
            audit=examined.audit,
            release=release.sha256,
            stopped_early=self.training.stopped_early,
        )
        write_durably(self.folder / RESULTS, results.model_dump_json(indent=1).encode())
        self._register(results, release)

    def _finish_pretraining(
        self, network: SeverityNetwork, rounds: Sequence[Mapping[str, Any]], trained_at: Sequence[str]
    ) -> None:
        """Write the pretrained start. There is nothing to evaluate, and no model to register."""
        self._write_history()
        start = save_start(
            self.folder / "release",
            network,
            self.study,
            run=self.name,
            strategy=_strategy(self.study),
            rounds=rounds,
            trained_at=trained_at,
        )
        self.tracker.add_artifacts(self.folder / "history.json", "history")
        self.tracker.add_artifacts(self.folder / "release", "pretrained")
        say(f"pretrained start {start.sha256}: a study begins from it with begin_from, once it is signed and approved")

    def _examined(self, model: Model, features: int, trained_at: list[str]) -> Examined:
        """Calibrate and test the model: from single sites' answers, or from sums alone."""
        rounds = self.training.state.round
        if self.study.sums_answers:
            with self._sums(features) as sums:
                return SummedExamination(self.study, sums, say).examine(model, trained_at, rounds)
        examination = Examination(self.study, self.sites, self.folder, self.name, self.robust, say, self.history)
        return examination.examine(model, features, trained_at, rounds)

    @contextmanager
    def _sums(self, features: int) -> Iterator[Sums]:
        """Yield what asks the sites for sums; `features`: numbers that the network computes per scan."""
        table = self.study.study
        if (masked := self.training.masked) is None:  # a simulation
            yield PlainSums(self.sites, self.history, say, features=features, timeout_s=table.round_timeout_s)
            return
        lengths = {"moments": features, "looks": APPEARANCE_SIZE}
        sums = MaskedSums(masked, self.sites, table.rounds, lengths, say, self.history)
        with sums.serving():
            yield sums

    def _register(self, results: Results, release: Release) -> None:
        """Log the final metrics, the results and the candidate to MLflow."""
        self.tracker.log_final(final_values(results))
        self.tracker.add_artifacts(self.folder / "history.json", "history")
        self.tracker.add_artifacts(self.folder / RESULTS, "results")
        number = self.tracker.register(self.folder / "release", release.sha256)
        where = f"is version {number} of" if number else "waits to be registered as"
        say(f"candidate {release.sha256[:12]} {where} the model {self.study.study.name}")

    def _privacy(self, rounds: Sequence[Mapping[str, Any]]) -> Privacy | None:
        """Return the model's privacy: ε of each site that took part, from its last reply that counted."""
        if self.study.privacy is None:
            return None
        epsilon: dict[str, float | None] = {site: None for entry in rounds for site in entry["sites"]}
        for entry in rounds:
            epsilon |= entry.get("epsilon", {})
        return Privacy(**self.study.privacy.model_dump(), epsilon=epsilon)


def round_line(report: RoundReport, entry: Mapping[str, Any], rounds: int) -> str:
    """Format one round in one line."""
    means = report.aggregated
    summary = f"loss {means[LOSS]:.3f}" if LOSS in means else "loss not reported"
    if "auroc_severe" in means:
        summary += f" · mean validation AUROC of severe before it {means['auroc_severe']:.2f}"
    lost = f" LOST ({report.lost_for})" if report.lost else ""
    return (
        f"round {report.round} of {rounds}{lost}"
        f" · {len(report.valid)} of {len(report.sampled)} sites · {summary} · {report.seconds:.0f} s"
        + "".join(f" · {flag}" for flag in flags(entry))
    )


def _strategy(study: Study) -> str:
    """Return the strategy as the model card names it: with the hash of its package, if it is one of a package."""
    chosen = study.strategy
    return f"{chosen.name}, code {chosen.code}" if chosen.code else chosen.name


def _cohorts(about: Mapping[str, SiteAbout]) -> str:
    """List the sites with their numbers of patients in bands; with many sites, only the number in each band."""
    if len(about) <= MANY:
        return ", ".join(f"{site} ({each.patients})" for site, each in about.items())
    bands = Counter(each.patients for each in about.values())
    return ", ".join(f"{count} with {band} patients" for band, count in bands.most_common())
