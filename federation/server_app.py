"""What the server does for a study: rounds under a guarded strategy, checkpoints, tracking, and a candidate model.

Thin where it can be: aggregation is Flower's, the guard is `strategy`, files are `checkpoint`, MLflow is `tracking`.
Everything of a run lies in SERVER_DIR/runs/<run>/: study.json, checkpoints/, release/.
"""

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from federation import checkpoint, reasons
from federation.control import read_server_config
from federation.flower_strategies import build_strategy, strategy_state
from federation.grid import EagerGrid
from federation.local import EVALUATE_METRICS, TRAIN_METRICS, load_network
from federation.packing import Arrays, pack
from federation.replies import EXAMPLES, encode, site_code, valid_figures
from federation.runs import MARK
from federation.server import sites
from federation.strategy import GuardedStrategy, RoundReport, weighted_means
from federation.study import Study
from federation.tracking import Tracker
from models.calibration import Platt
from models.network import LABELS, build_network
from models.refusal import Refusal
from models.release import Description, save_release

MAX_EXAMPLES = 100_000  # cap on the weight that a site may claim
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
        say(f"{refusal} {refusal.remedy}")
        raise


@dataclass
class ServerRun:
    """One run of a study on the server."""

    server_folder: Path
    study: Study
    name: str
    grid: EagerGrid
    history: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.server_folder / "runs" / self.name

    def execute(self) -> None:
        """All rounds that are still to do, then the final evaluation and the candidate."""
        state = self._start_state()
        self.history = list(state.history)
        self.tracker = Tracker(self.server_folder, self.study, self.name, self._tags())
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

    def _train(self, state: checkpoint.State) -> tuple[Arrays, Arrays]:
        """The rounds after `state`; a checkpoint after each."""
        remaining = self.study.study.rounds - state.round
        if remaining <= 0:
            return state.arrays, state.buffers
        self.strategy = GuardedStrategy(
            build_strategy(self.study.strategy.name, self.study.strategy.options),
            quorum=self.study.study.quorum,
            metrics=TRAIN_METRICS,
            max_examples=MAX_EXAMPLES,
            buffers=state.buffers,
            wait_s=self.study.study.wait_s,
            first_round=state.round + 1,
            memory=state.memory,
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
        missing = {self.names.get(node, "unknown"): code for node, code in report.refused.items()}
        self.history.append(
            {
                "round": report.round,
                "lost": report.lost,
                "sites": sorted(self.names.get(node, "unknown") for node in report.valid),
                "refused": missing,
                "means": dict(report.aggregated),
                "seconds": round(report.seconds, 1),
                "bytes_up": report.bytes_up,
                "bytes_down": report.bytes_down,
            }
        )
        means = report.aggregated
        told = f"loss {means.get('train_loss', math.nan):.3f}"
        if "auroc_severe" in means:
            told += f" · mean validation AUROC of severe before it {means['auroc_severe']:.2f}"
        refused = "".join(f" · {site}: {code}" for site, code in sorted(missing.items()))
        say(
            f"round {report.round} of {self.study.study.rounds}"
            f"{' LOST' if report.lost else ''} · {len(report.valid)} of {len(report.sampled)} sites · {told}"
            f" · {report.seconds:.0f} s{refused}"
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
        self.tracker.log_round(report, self.names)
        if report.round == self.study.study.rounds:
            self.tracker.add_artifacts(saved, "checkpoint")

    def _finish(self, arrays: Arrays, buffers: Arrays) -> None:
        """Evaluate the final model at the sites, calibrate it, write and register the candidate."""
        figures = self._evaluate(arrays, buffers)
        means = weighted_means(list(figures.values())) if figures else {}
        trained_by = {site for entry in self.history for site in entry["sites"]}
        release = save_release(
            self.folder / "release",
            load_network(self.study, arrays, buffers),
            Description(
                network=self.study.network,
                preprocessing=self.study.preprocessing.model_dump(mode="json"),
                calibration={label: _mean_platt(means, label) for label in LABELS},
                study=self.study.study.name,
                run=self.name,
                rounds=sum(not entry["lost"] for entry in self.history),
                sites=len(trained_by),
                strategy=self.study.strategy.name,
                software=f"fedthorax {version('fedthorax')}",
                trained_on_synthetic_data=self.study.study.synthetic,
                metrics={f"mean_{k}": v for k, v in means.items() if k.startswith(("auroc", "loss"))},
            ),
        )
        self.tracker.log_final(
            {
                f"{self.names.get(node, 'unknown')}/{k}": v
                for node, f in figures.items()
                for k, v in f.items()
                if k != EXAMPLES
            }
            | {f"mean_{k}": v for k, v in means.items()},
            self.study.study.rounds,
        )
        (self.folder / "history.json").write_text(json.dumps(self.history, indent=1))
        self.tracker.add_artifacts(self.folder / "history.json", "history")
        number = self.tracker.register(self.folder / "release", release.sha256)
        say(f"candidate {release.sha256[:12]} is version {number} of the model {self.study.study.name}")

    def _evaluate(self, arrays: Arrays, buffers: Arrays) -> dict[int, dict[str, float]]:
        """Ask each site that is there for its figures; what is malformed or missing is left out and told."""
        content = RecordDict(
            {"arrays": encode(arrays), "buffers": encode(buffers), "config": ConfigRecord({"server-round": 0})}
        )
        nodes = list(self.grid.get_node_ids())
        messages = [Message(content, dst_node_id=node, message_type=MessageType.EVALUATE) for node in nodes]
        replies = self.grid.send_and_receive(messages, timeout=self.study.study.round_timeout_s)
        return self._valid_figures(replies, nodes)

    def _valid_figures(self, replies: Any, nodes: Sequence[int]) -> dict[int, dict[str, float]]:
        figures = {}
        for reply in replies:
            node = reply.metadata.src_node_id
            found = valid_figures(reply, frozenset(EVALUATE_METRICS), MAX_EXAMPLES)
            if node in nodes and found is not None:
                figures[node] = found
            else:
                code = site_code(reply.error.reason) if reply.has_error() else reasons.REPLY_METRICS.code
                say(f"final evaluation without {self.names.get(node, 'unknown')}: {code}")
        say(f"final evaluation at {len(figures)} of {len(nodes)} sites")
        return dict(sorted(figures.items()))


def _mean_platt(means: Mapping[str, float], label: str) -> Platt:
    """The sites' calibrations averaged; as it is where no site could fit one."""
    return Platt(slope=means.get(f"slope_{label}", 1.0), intercept=means.get(f"intercept_{label}", 0.0))
