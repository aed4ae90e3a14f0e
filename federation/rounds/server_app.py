"""What the server does for a study: rounds under a guarded strategy, checkpoints, tracking, and a candidate model.

Thin where it can be: aggregation is Flower's, the guard is `strategy`, files are `checkpoint`, MLflow is `tracking`.
Everything of a run lies in SERVER_DIR/runs/<run>/: study.json, checkpoints/, release/, and history.json, which tells
of each round who took part, who was refused and why, and where each site's ledger ended.
"""

import errno
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from federation import reasons
from federation.allowed import EPSILON, FIGURES, LOSS
from federation.enrolment.invitations import enrolled_patients
from federation.rounds import checkpoint
from federation.rounds.flower_strategies import build_strategy, is_robust, strategy_state
from federation.rounds.grid import EagerGrid
from federation.rounds.local import load_network
from federation.rounds.packing import Arrays, pack
from federation.rounds.replies import EXAMPLES, NO_HEAD, Expected, LedgerHead, encode, figures, sift
from federation.rounds.reports import RoundReport, middle_figures, weighted_means
from federation.rounds.strategy import GuardedStrategy
from federation.rounds.tracking import Tracker, hand_over_rest
from federation.server.control import read_server_config
from federation.server.start import sites
from federation.studies.runs import MARK
from federation.study import Study
from models.calibration import Platt
from models.network import LABELS, build_network
from models.refusal import Refusal
from models.release import Description, Privacy, save_release

MAX_EXAMPLES = 100_000  # no hospital has more; a reply that claims more is refused
# What a file system says when it takes no more: full, over quota, over a limit, not ours, read-only.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
log = logging.getLogger("flwr")
app = ServerApp()


def say(text: str) -> None:
    """A line for whoever watches the run."""
    log.info("%s%s", MARK, text)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run or resume the study that the run's configuration holds."""
    study = Study.model_validate_json(str(context.run_config["study"]))
    run = ServerRun(Path(os.environ["FEDTHORAX_SERVER_DIR"]), study, str(context.run_config["run"]), EagerGrid(grid))
    try:
        run.execute()
    except Refusal as refusal:
        say(f"{refusal}. {refusal.remedy}")
        raise
    except OSError as error:
        if error.errno not in _DISK:
            raise
        full = Refusal(reasons.SERVER_DISK, private=str(error))
        say(f"{full}. {full.remedy}")
        raise full from error


@dataclass
class ServerRun:
    """One run of a study on the server."""

    server_folder: Path
    study: Study
    name: str
    grid: EagerGrid
    history: list[Mapping[str, Any]] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)  # of the sites, by node id
    enrolled: dict[int, int] = field(default_factory=dict)  # patients, of nodes that were enrolled with a number

    @property
    def folder(self) -> Path:
        return self.server_folder / "runs" / self.name

    def execute(self) -> None:
        """All rounds that are still to do, then the final evaluation and the candidate."""
        self.inner = build_strategy(self.study.strategy.name, self.study.strategy.options, sites=self.study.study.sites)
        state = self._start_state()
        self.history = list(state.history)
        hand_over_rest(self.server_folder, say)
        self.tracker = Tracker(self.server_folder, self.study, self.name, say)
        self.tracker.begin(self._tags())
        try:
            self._wait_for_sites()
            arrays, buffers = self._train(state)
            self._finish(arrays, buffers)
        except BaseException:
            self.tracker.end(completed=False)
            raise
        self.tracker.end(completed=True)

    def _start_state(self) -> checkpoint.State:
        """Where to go on from: the last intact checkpoint, or round 0 with fresh weights."""
        try:
            loaded = checkpoint.load_latest(self.folder / "checkpoints")
            for number in loaded.damaged_rounds:
                say(f"the checkpoint of round {number} is damaged; the one before is used")
            say(f"going on after round {loaded.state.round} of {self.study.study.rounds}")
            return loaded.state
        except Refusal as refusal:
            if refusal.reason is not reasons.CHECKPOINT_NONE:
                raise
        arrays, buffers = pack(build_network(self.study.network, seed=self.study.study.seed))
        return checkpoint.State(round=0, arrays=arrays, buffers=buffers, memory={}, history=[], about={})

    def _tags(self) -> dict[str, str]:
        return {"fedthorax.version": version("fedthorax"), "synthetic": str(self.study.study.synthetic).lower()}

    def _wait_for_sites(self) -> None:
        """Wait for all the study's sites; go on with a quorum when the time is over."""
        wanted, deadline = self.study.study.sites, time.monotonic() + self.study.study.wait_s
        while (present := len(list(self.grid.get_node_ids()))) < wanted and time.monotonic() < deadline:
            time.sleep(1)
        say(f"{present} of {wanted} sites are there")
        # Node ids become names here, once: a site that is enrolled later has no part in this run.
        simulated = read_server_config(self.server_folder).simulated_sites
        ids = sorted(self.grid.get_node_ids())
        enrolled = [] if simulated else sites(self.server_folder)
        self.names = {node: f"site-{k}" for k, node in enumerate(ids, start=1)}
        self.names |= {site.node_id: site.name for site in enrolled}
        patients = {} if simulated else enrolled_patients(self.server_folder)
        numbers = {node: patients.get(name) for node, name in self.names.items()}
        self.enrolled = {node: number for node, number in numbers.items() if number}

    def _name(self, node: int) -> str:
        return self.names.get(node, "unknown")

    def _heads(self) -> dict[int, LedgerHead]:
        """What each node last told of its ledger, in this run."""
        last: dict[str, Any] = {}
        for entry in self.history:
            last |= entry.get("ledger", {})
        return {node: LedgerHead(**last[name]) for node, name in self.names.items() if name in last}

    def _ledger(self, heads: Mapping[int, LedgerHead]) -> dict[str, dict[str, Any]]:
        return {self._name(node): asdict(head) for node, head in sorted(heads.items())}

    def _write_history(self) -> None:
        (self.folder / "history.json").write_text(json.dumps(self.history, indent=1))

    def _train(self, state: checkpoint.State) -> tuple[Arrays, Arrays]:
        """The rounds after `state`; a checkpoint after each."""
        remaining = self.study.study.rounds - state.round
        if remaining <= 0:
            return state.arrays, state.buffers
        self.strategy = GuardedStrategy(
            self.inner,
            quorum=self.study.study.quorum,
            metrics=FIGURES["train"],
            max_examples=MAX_EXAMPLES,
            enrolled=self.enrolled,
            buffers=state.buffers,
            wait_s=self.study.study.wait_s,
            first_round=state.round + 1,
            memory=state.memory,
            heads=self._heads(),
            on_round=self._after_round,
        )
        self.strategy.start(
            grid=cast(Grid, self.grid),
            initial_arrays=encode(state.arrays),
            num_rounds=remaining,
            timeout=self.study.study.round_timeout_s,
        )
        return self.strategy.arrays, self.strategy.buffers

    def _after_round(self, report: RoundReport) -> None:
        """Tell, track and save one round."""
        refused = {self._name(node): code for node, code in report.refused.items()}
        capped = sorted(map(self._name, report.capped))
        self.history.append(
            {
                "round": report.round,
                "lost": report.lost,
                "lost_for": report.lost_for,
                "sites": sorted(map(self._name, report.valid)),
                "refused": refused,
                "capped": capped,
                "ledger": self._ledger(report.ledger),
                "epsilon": {self._name(node): m[EPSILON] for node, m in report.metrics.items() if EPSILON in m},
                "means": dict(report.aggregated),
                "seconds": round(report.seconds, 1),
                "bytes_up": report.bytes_up,
                "bytes_down": report.bytes_down,
            }
        )
        means = report.aggregated
        told = f"loss {means[LOSS]:.3f}" if LOSS in means else "loss not told"
        if "auroc_severe" in means:
            told += f" · mean validation AUROC of severe before it {means['auroc_severe']:.2f}"
        flags = sorted(refused.items()) + [(site, reasons.EXAMPLES_CAPPED.code) for site in capped]
        lost = f" LOST ({report.lost_for})" if report.lost else ""
        say(
            f"round {report.round} of {self.study.study.rounds}{lost}"
            f" · {len(report.valid)} of {len(report.sampled)} sites · {told} · {report.seconds:.0f} s"
            + "".join(f" · {site}: {code}" for site, code in flags)
        )
        saved = checkpoint.save(
            self.folder / "checkpoints",
            checkpoint.State(
                round=report.round,
                arrays=self.strategy.arrays,
                buffers=self.strategy.buffers,
                memory=strategy_state(self.strategy.inner),
                history=self.history,
                about={"study": self.study.study.name, "run": self.name},
            ),
        )
        self._write_history()
        self.tracker.log_round(report, self.names)
        if report.round == self.study.study.rounds:
            self.tracker.add_artifacts(saved, "checkpoint")

    def _finish(self, arrays: Arrays, buffers: Arrays) -> None:
        """Evaluate the final model at the sites, calibrate it, write and register the candidate."""
        found = self._evaluate(arrays, buffers)
        means = weighted_means(list(found.values())) if found else {}
        # One site's wild calibration would spoil the release of a study that withstands it in every round.
        calibration = middle_figures(list(found.values())) if is_robust(self.inner) else means
        rounds = [entry for entry in self.history if "lost" in entry]
        trained_by = {site for entry in rounds for site in entry["sites"]}
        release = save_release(
            self.folder / "release",
            load_network(self.study, arrays, buffers),
            Description(
                network=self.study.network,
                preprocessing=self.study.preprocessing.model_dump(mode="json"),
                calibration={label: _platt(calibration, label) for label in LABELS},
                study=self.study.study.name,
                run=self.name,
                rounds=sum(not entry["lost"] for entry in rounds),
                sites=len(trained_by),
                strategy=self.study.strategy.name,
                software=f"fedthorax {version('fedthorax')}",
                trained_on_synthetic_data=self.study.study.synthetic,
                metrics={f"mean_{k}": v for k, v in means.items() if k.startswith(("auroc", "loss"))},
                privacy=self._privacy(rounds),
            ),
        )
        self.tracker.log_final(
            {f"{self._name(node)}/{k}": v for node, f in found.items() for k, v in f.items() if k != EXAMPLES}
            | {f"mean_{k}": v for k, v in means.items()},
            self.study.study.rounds,
        )
        self.tracker.add_artifacts(self.folder / "history.json", "history")
        number = self.tracker.register(self.folder / "release", release.sha256)
        where = f"is version {number} of" if number else "waits to be registered as"
        say(f"candidate {release.sha256[:12]} {where} the model {self.study.study.name}")

    def _privacy(self, rounds: Sequence[Mapping[str, Any]]) -> Privacy | None:
        """How private the model is: ε of each site that took part, as of its last reply that counted."""
        if self.study.privacy is None:
            return None
        epsilon: dict[str, float | None] = {site: None for entry in rounds for site in entry["sites"]}
        for entry in rounds:
            epsilon |= entry.get("epsilon", {})
        return Privacy(**self.study.privacy.model_dump(), epsilon=epsilon)

    def _evaluate(self, arrays: Arrays, buffers: Arrays) -> dict[int, dict[str, float]]:
        """Ask each site that is there for its figures; what is malformed or missing is left out and told."""
        heads = self._heads()
        nodes = sorted(self.grid.get_node_ids())
        weights, moments = encode(arrays), encode(buffers)

        def message(node: int) -> Message:
            config = ConfigRecord({"server-round": 0, **heads.get(node, NO_HEAD).config()})
            content = RecordDict({"arrays": weights, "buffers": moments, "config": config})
            return Message(content, dst_node_id=node, message_type=MessageType.EVALUATE)

        messages = [message(node) for node in nodes]
        replies = self.grid.send_and_receive(messages, timeout=self.study.study.round_timeout_s)
        sifted = sift(replies, nodes, Expected({}, {}, FIGURES["evaluate"], MAX_EXAMPLES), heads)
        for node, code in sifted.refused.items():
            say(f"final evaluation without {self._name(node)}: {code}")
        say(f"final evaluation at {len(sifted.valid)} of {len(nodes)} sites")
        self.history.append(
            {
                "evaluation": "final",
                "sites": sorted(map(self._name, sifted.valid)),
                "refused": {self._name(node): code for node, code in sifted.refused.items()},
                "ledger": self._ledger(sifted.heads),
            }
        )
        self._write_history()
        return {node: self._counted(node, figures(reply)) for node, reply in sifted.valid.items()}

    def _counted(self, node: int, found: Mapping[str, float]) -> dict[str, float]:
        return {**found, EXAMPLES: min(found[EXAMPLES], self.enrolled.get(node, MAX_EXAMPLES))}


def _platt(means: Mapping[str, float], label: str) -> Platt:
    """The calibration that the sites' own were made into; as it is where no site could fit one."""
    return Platt(slope=means.get(f"slope_{label}", 1.0), intercept=means.get(f"intercept_{label}", 0.0))
