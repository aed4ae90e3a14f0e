"""What comes after the last round: calibration, every model at every site, and the audit, by questions to the sites.

The model is calibrated on validation patients, and judged on test patients with that calibration and the thresholds
that belong to it. What it is compared with is judged on the same patients. Before that the sites tell what features and
looks of their training patients are like: the question of calibration also asks how far validation patients lie from
these looks, and the audit whether features tell the site.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flwr.app import ConfigRecord
from scipy.special import expit

from federation.coordinator import shortcut_audit
from federation.coordinator.connected_sites import MAX_EXAMPLES, Content, Sites, to_all
from federation.coordinator.local_models import Alone, model_of, model_records
from federation.coordinator.rounds import Model, Training
from federation.protocol.calibration_answers import to_record
from federation.protocol.flat_weights import Arrays, pack
from federation.protocol.metric_allowlist import FIGURES, MAX_PROBED, Kind
from federation.protocol.pooled_calibration import pooled
from federation.protocol.reply_validation import CALIBRATIONS, EXAMPLES, Expected, Sifted, decode, encode
from federation.protocol.simulated_sites import simulated_folders
from federation.protocol.study_config import Study
from federation.runs.results import FEDERATED, Audit, ModelFigures, OperatingPoint, Probe
from federation.runs.results import Kind as ModelKind
from federation.strategy.round_report import RoundReport, by_code
from federation.strategy.sampling import draw
from models.familiarity import LOOKS, Distances, Familiarity, Moments, limit, pool_moments
from models.refusal import Refusal
from pipeline.evaluation.figures import Deployed

Figures = dict[int, dict[str, float]]  # of each site, by node id


class Embedded(NamedTuple):
    """What a site's training patients are like: to the model, and to look at."""

    features: Moments
    looks: Moments


@dataclass(frozen=True)
class Calibrated:
    """The calibration and the thresholds of a model, and how many sites gave each threshold, by label and point.

    `familiarity`: None where fewer than two sites let statistics of scans' looks out. `answers`: the sites' own, from
    which each site's gateway computes calibration and thresholds again before it answers a question that uses them.
    """

    deployed: Deployed
    answers: Sequence[Mapping[str, float]]
    sites: Mapping[str, Mapping[str, int]]
    familiarity: Familiarity | None

    def operating_points(self) -> dict[str, dict[str, OperatingPoint]]:
        """The thresholds as calibrated probabilities; of the labels that have both."""
        return {
            label: {
                point: OperatingPoint(threshold=float(expit(platt.slope * at + platt.intercept)), sites=given[point])
                for point, at in self.deployed.thresholds[label].items()
            }
            for label, given in self.sites.items()
            if (platt := self.deployed.calibration.get(label))
        }


@dataclass
class Examination:
    """Questions to the sites about models. `robust`: one site's wild figures shall not carry a release away.

    `history` grows by an entry for each question.
    """

    study: Study
    sites: Sites
    folder: Path
    run: str
    robust: bool
    say: Callable[[str], None]
    history: list[Mapping[str, Any]]
    models: list[ModelFigures] = field(default_factory=list)

    def ask(
        self,
        kind: Kind,
        model: Model,
        what: str,
        config: Mapping[str, float | bool] | None = None,
        arrays: Mapping[str, Arrays] | None = None,
        answers: Sequence[Mapping[str, float]] = (),
    ) -> Figures:
        """The sites' figures of a model; `arrays`: what goes with it, by record; `answers`: the sites' calibrations."""
        records = model_records(model) | {record: encode(group) for record, group in (arrays or {}).items()}
        records["config"] = ConfigRecord(dict(config or {}))
        if answers:
            records[CALIBRATIONS] = to_record(answers)
        expected = Expected({}, {}, FIGURES[kind], MAX_EXAMPLES)
        return self.sites.figures(self._question(kind, to_all(records), expected, what))

    def _question(
        self, kind: Kind, content: Content, expected: Expected, what: str, among: Container[str] | None = None
    ) -> Sifted:
        """Ask the sites that are there, of these names if any are given; who does not answer is left out and told."""
        nodes = [node for node in self.sites.nodes() if among is None or self.sites.name(node) in among]
        timeout_s = self.study.study.round_timeout_s
        sifted = self.sites.ask(kind, content, expected, nodes=nodes, timeout_s=timeout_s)
        for line in by_code({self.sites.name(node): code for node, code in sifted.refused.items()}):
            self.say(f"{what} without {line}")
        self.say(f"{what} at {len(sifted.valid)} of {len(nodes)} sites")
        self.history.append(self.sites.entry(what, sifted))
        return sifted

    def embed(self, model: Model, features: int) -> dict[str, Embedded]:
        """What each site's training patients are like, by site, of those that let it out.

        `features`: how many the model's backbone makes of a scan.
        """
        moments, looks = (dict.fromkeys(("mean", "variance"), np.zeros(n, np.float32)) for n in (features, LOOKS))
        expected = Expected({}, {}, {}, MAX_EXAMPLES, moments=moments, looks=looks)
        what = "features of training patients"
        sifted = self._question("evaluate.embed", to_all(model_records(model)), expected, what)
        patients = {node: int(each[EXAMPLES]) for node, each in self.sites.figures(sifted).items()}
        return {
            self.sites.name(node): Embedded(
                *(
                    Moments(**decode(reply.content.array_records[record]), patients=patients[node])
                    for record in ("moments", "looks")
                )
            )
            for node, reply in sifted.valid.items()
        }

    def calibrate(self, model: Model, embedded: Mapping[str, Embedded]) -> Calibrated:
        """One calibration and one set of thresholds, made of what the sites fitted to their validation patients.

        And what is familiar, from how the sites' training patients look and how far those of validation lie from all of
        these. One site's looks alone do not go into a release, which others see than those whom the site lets see them.
        """
        typical = dict.fromkeys(("mean", "variance"), np.zeros(LOOKS, np.float32))  # nothing is known
        if len(embedded) > 1:
            looks = [embedded[site].looks for site in sorted(embedded)]
            typical["mean"], typical["variance"] = pool_moments(looks, robust=self.robust)
        by_node = self.ask("evaluate.calibrate", model, "calibration", arrays={"typical": typical})
        found = [by_node[node] for node in sorted(by_node, key=self.sites.name)]  # node ids are drawn anew in each run
        fits, thresholds = pooled(found, is_robust=self.robust)
        given = {
            label: {point: sum(f"{point}_{label}" in each for each in found) for point in points}
            for label, points in thresholds.items()
        }
        return Calibrated(Deployed(fits, thresholds), found, given, self._familiarity(typical, found))

    def _familiarity(self, typical: Arrays, found: Sequence[Mapping[str, float]]) -> Familiarity | None:
        told = [
            Distances(each["distance_mean"], each["distance_sd"], int(each[EXAMPLES]))
            for each in found
            if {"distance_mean", "distance_sd"} <= set(each) and each[EXAMPLES] > 1
        ]
        if not (told and typical["variance"].any()):  # what nobody asked for counts for nothing
            self.say("what is unlike the scans of training is not known: too few sites let its statistics out")
            return None
        return Familiarity(
            mean=tuple(typical["mean"].tolist()),
            variance=tuple(typical["variance"].tolist()),
            limit=limit(told, robust=self.robust),
            sites=len(told),
        )

    def judge(
        self,
        name: str,
        kind: ModelKind,
        model: Model,
        trained_at: list[str],
        config: Mapping[str, Any] | None = None,
        answers: Sequence[Mapping[str, float]] = (),
    ) -> Figures:
        """One model on all sites' test patients; it becomes one of `models`.

        `config` may hold a calibration and thresholds; `answers`: the sites' calibrations from which they come.
        """
        what = "test" if name == FEDERATED else f"test of {name}"
        found = self.ask("evaluate.test", model, what, config, answers=answers)
        by_name = {self.sites.name(node): figures for node, figures in sorted(found.items())}
        self.models.append(ModelFigures(name=name, kind=kind, trained_at=sorted(trained_at), figures=by_name))
        return found

    def audit(self, model: Model, found: Figures, embedded: Mapping[str, Embedded]) -> Audit:
        """Whether the model may read the scanner and not the lung; `found` are the sites' figures of it."""
        by_name = {self.sites.name(node): figures for node, figures in sorted(found.items())}
        return shortcut_audit.judge(by_name, self._probe(model, embedded))

    def _probe(self, model: Model, embedded: Mapping[str, Embedded]) -> Probe | None:
        """How well the features tell the site; None where fewer than two sites let their moments out."""
        probed = sorted(embedded)[:MAX_PROBED]
        if len(probed) < 2:
            return None
        table = shortcut_audit.discriminants({site: embedded[site].features for site in probed})
        records = model_records(model) | {"probe": encode({"discriminants": table})}
        records["config"] = ConfigRecord({"probed": len(probed)})
        expected = Expected({}, {}, FIGURES["evaluate.assign"], MAX_EXAMPLES)
        asked = self._question("evaluate.assign", to_all(records), expected, "features of test patients", among=probed)
        shares = {
            self.sites.name(node): [each[f"assigned_{place:02}"] for place in range(len(probed))]
            for node, each in self.sites.figures(asked).items()
        }
        return shortcut_audit.probe(shares, probed) if shares else None

    def compare(self, model: Model, rounds: int) -> None:
        """Judge what the study asks the federated model to be compared with."""
        asked = self.study.evaluation
        drawn = self._drawn(asked.compared_sites)
        if asked.fine_tune:
            self._fine_tuned(model, drawn)
        if asked.pooled and simulated_folders():
            self._pooled()
        if asked.local_models:
            alone = Alone(self.study, self.folder / "compared", self.run, self.say)
            for node, local in alone.train(self.sites.only(drawn), rounds).items():
                site = self.sites.name(node)
                self.judge(f"{site} alone", "local", local, [site])
        if asked.leave_one_out:
            self._left_out(drawn)

    def _drawn(self, count: int) -> list[int]:
        """The sites whose own models are compared: `count` that the seed draws, or all."""
        return draw(self.sites.nodes(), self.sites.name, count, seed=self.study.study.seed, what="compared")

    def _fine_tuned(self, model: Model, drawn: Sequence[int]) -> None:
        """The federated model with its head fitted once more, at each of these sites to its own patients."""
        expected = Expected(model.arrays, model.buffers, FIGURES["train.head"], MAX_EXAMPLES)
        among = set(map(self.sites.name, drawn))
        sifted = self._question("train.head", to_all(model_records(model)), expected, "fine-tuning", among)
        for node, reply in sifted.valid.items():
            site = self.sites.name(node)
            self.judge(f"{site} fine-tuned", "fine_tuned", model_of(reply), [site])

    def _pooled(self) -> None:
        """What a simulation alone can have: a model of all patients in one place."""
        from federation.coordinator.baselines import train_together
        from pipeline.site.folder import Site

        self.say("pooled model: training")
        network = train_together(self.study, [Site.open(folder) for folder in simulated_folders()])
        self.judge("pooled", "pooled", Model(*pack(network)), sorted(self.sites.names.values()))

    def _left_out(self, drawn: Sequence[int]) -> None:
        """The federation without each of these sites, trained anew and judged at all sites, that one among them."""
        nodes, table = self.sites.nodes(), self.study.study
        fewer = {"sites": len(nodes) - 1, "quorum": max(1, min(table.quorum, len(nodes) - 1))}
        study = self.study.model_copy(update={"study": table.model_copy(update=fewer)})
        for left in drawn:
            rest, name = [node for node in nodes if node != left], f"without {self.sites.name(left)}"

            def tell(report: RoundReport, *_: object, name: str = name) -> None:
                self.say(f"{name}: round {report.round} of {table.rounds}")

            try:
                training = Training(study, self.folder / "compared" / name, self.run, tell)
                model = training.execute(self.sites.only(rest))
            except Refusal as refusal:  # fewer sites than the strategy needs, or too many rounds lost
                self.say(f"no federation {name}: {refusal.code}")
                continue
            self.judge(name, "left_out", model, [self.sites.name(node) for node in rest])
