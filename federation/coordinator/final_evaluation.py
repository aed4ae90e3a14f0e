"""The steps after the last round: calibration, evaluation of every model at every site, and the shortcut audit.

The model is calibrated on validation patients. It is evaluated on test patients with that calibration and its
thresholds. The models of the comparison are evaluated on the same patients. First the sites report statistics of the
features and of the appearance of their training patients. The calibration request also asks how far validation
patients are from this appearance, and the audit asks whether the features predict the site.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flwr.app import ConfigRecord

from federation.coordinator import shortcut_audit
from federation.coordinator.connected_sites import MAX_EXAMPLES, Content, Sites, ask_and_note, to_all
from federation.coordinator.examined import Calibrated, Examined, Figures
from federation.coordinator.local_models import Alone, model_of, model_records
from federation.coordinator.rounds import Model, Training
from federation.protocol.calibration_answers import to_record
from federation.protocol.deployment import to_config
from federation.protocol.flat_weights import Arrays, pack
from federation.protocol.metric_allowlist import EXAMPLES, FIGURES, MAX_PROBED, Kind
from federation.protocol.operating_points import choose_all
from federation.protocol.pooled_calibration import pooled
from federation.protocol.pooled_figures import weighted_means
from federation.protocol.reply_validation import CALIBRATIONS, Expected, Sifted, decode, encode
from federation.protocol.simulated_sites import simulated_folders
from federation.protocol.study_config import Study
from federation.runs.results import FEDERATED, Audit, ModelFigures, Probe
from federation.runs.results import Kind as ModelKind
from federation.strategy.round_report import RoundReport
from federation.strategy.sampling import draw
from models.familiarity import APPEARANCE_SIZE, Distances, Familiarity, Moments, limit, pool_moments
from models.refusal import Refusal
from pipeline.evaluation.figures import Deployed


class Embedded(NamedTuple):
    """Statistics of a site's training patients: the model's features, and the appearance of the scans."""

    features: Moments
    looks: Moments


@dataclass
class Examination:
    """Requests to the sites about models. `robust`: one site's extreme values must not dominate a release.

    Each request appends an entry to `history`.
    """

    study: Study
    sites: Sites
    folder: Path
    run: str
    robust: bool
    say: Callable[[str], None]
    history: list[Mapping[str, Any]]
    models: list[ModelFigures] = field(default_factory=list)

    def examine(self, model: Model, features: int, trained_at: list[str], rounds: int) -> Examined:
        """Calibrate, test and audit the federated model, and test those that the study compares with it.

        `features`: numbers that the network computes per scan. `rounds`: of each of the other models.
        """
        # The embedding uses training patients, which the noise of a private study does not cover.
        embedded = {} if self.study.privacy is not None else self.embed(model, features)
        calibrated = self.calibrate(model, embedded)
        audited = self.study.audits
        config = {**to_config(calibrated.deployed), "audit": audited}
        found = self.judge(FEDERATED, "federated", model, trained_at, config, calibrated.answers)
        audit = self.audit(model, found, embedded) if audited else None
        self.compare(model, rounds)
        return Examined(self.models, calibrated, audit, weighted_means(list(found.values())))

    def ask(
        self,
        kind: Kind,
        model: Model,
        what: str,
        config: Mapping[str, float | bool] | None = None,
        arrays: Mapping[str, Arrays] | None = None,
        answers: Sequence[Mapping[str, float]] = (),
    ) -> Figures:
        """Ask for the sites' metrics of a model; `arrays`: further records to send; `answers`: sites' calibrations."""
        records = model_records(model) | {record: encode(group) for record, group in (arrays or {}).items()}
        records["config"] = ConfigRecord(dict(config or {}))
        if answers:
            records[CALIBRATIONS] = to_record(answers)
        expected = Expected({}, {}, FIGURES[kind], MAX_EXAMPLES)
        return self.sites.figures(self._question(kind, to_all(records), expected, what))

    def _question(
        self, kind: Kind, content: Content, expected: Expected, what: str, among: Container[str] | None = None
    ) -> Sifted:
        return ask_and_note(
            self.sites, kind, content, expected, what, self.history, self.say, self.study.study.round_timeout_s, among
        )

    def embed(self, model: Model, features: int) -> dict[str, Embedded]:
        """Ask for the statistics of training patients, by site, for the sites that release them.

        `features`: the number of features that the model's backbone computes for a scan.
        """
        moments, looks = (
            dict.fromkeys(("mean", "variance"), np.zeros(n, np.float32)) for n in (features, APPEARANCE_SIZE)
        )
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
        """Combine the sites' fits on validation patients into one calibration and one set of thresholds.

        The familiarity model is made from the appearance of the sites' training patients and the distances of their
        validation patients. It needs at least two sites: a release is public, and a site reports its own statistics
        only to the server.
        """
        typical = dict.fromkeys(("mean", "variance"), np.zeros(APPEARANCE_SIZE, np.float32))  # no statistics
        if len(embedded) > 1:
            looks = [embedded[site].looks for site in sorted(embedded)]
            typical["mean"], typical["variance"] = pool_moments(looks, robust=self.robust)
        by_node = self.ask("evaluate.calibrate", model, "calibration", arrays={"typical": typical})
        found = [by_node[node] for node in sorted(by_node, key=self.sites.name)]  # node ids differ in each run
        fits, thresholds = pooled(found, is_robust=self.robust)
        choices = choose_all(found, is_robust=self.robust)
        return Calibrated(Deployed(fits, thresholds), found, choices, self._familiarity(typical, found))

    def _familiarity(self, typical: Arrays, found: Sequence[Mapping[str, float]]) -> Familiarity | None:
        reported = [
            Distances(each["distance_mean"], each["distance_sd"], int(each[EXAMPLES]))
            for each in found
            if {"distance_mean", "distance_sd"} <= set(each) and each[EXAMPLES] > 1
        ]
        if not (reported and typical["variance"].any()):  # an unrequested value is ignored
            self.say("familiarity of scans is not available: too few sites release the statistics for it")
            return None
        return Familiarity(
            mean=tuple(typical["mean"].tolist()),
            variance=tuple(typical["variance"].tolist()),
            limit=limit(reported, robust=self.robust),
            sites=len(reported),
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
        """Evaluate one model on all sites' test patients and add it to `models`.

        `config` may contain a calibration and thresholds; `answers`: the sites' calibrations that they come from.
        """
        what = "test" if name == FEDERATED else f"test of {name}"
        found = self.ask("evaluate.test", model, what, config, answers=answers)
        by_name = {self.sites.name(node): figures for node, figures in sorted(found.items())}
        self.models.append(ModelFigures(name=name, kind=kind, trained_at=sorted(trained_at), figures=by_name))
        return found

    def audit(self, model: Model, found: Figures, embedded: Mapping[str, Embedded]) -> Audit:
        """Judge whether the model may read the scanner instead of the lung; `found`: the sites' metrics of it."""
        by_name = {self.sites.name(node): figures for node, figures in sorted(found.items())}
        return shortcut_audit.judge(by_name, self._probe(model, embedded))

    def _probe(self, model: Model, embedded: Mapping[str, Embedded]) -> Probe | None:
        """Measure how well the features predict the site; None if fewer than two sites release their moments."""
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
        """Evaluate the models that the study compares with the federated model."""
        asked = self.study.evaluation
        drawn = self._drawn(asked.compared_sites)
        if asked.fine_tune:
            self._fine_tuned(model, drawn)
        if asked.pooled and simulated_folders():
            together = pooled_model(self.study, rounds, self.say)
            self.judge("pooled", "pooled", together, sorted(self.sites.names.values()))
        if asked.local_models:
            alone = Alone(self.study, self.folder / "compared", self.run, self.say)
            for node, local in alone.train(self.sites.only(drawn), rounds).items():
                site = self.sites.name(node)
                self.judge(f"{site} alone", "local", local, [site])
        if asked.leave_one_out:
            self._left_out(drawn)

    def _drawn(self, count: int) -> list[int]:
        """Return the sites whose own models are compared: `count` sites drawn with the seed, or all."""
        return draw(self.sites.nodes(), self.sites.name, count, seed=self.study.study.seed, what="compared")

    def _fine_tuned(self, model: Model, drawn: Sequence[int]) -> None:
        """Evaluate the federated model with its head fine-tuned at each of these sites on its own patients."""
        expected = Expected(model.arrays, model.buffers, FIGURES["train.head"], MAX_EXAMPLES)
        among = set(map(self.sites.name, drawn))
        sifted = self._question("train.head", to_all(model_records(model)), expected, "fine-tuning", among)
        for node, reply in sifted.valid.items():
            site = self.sites.name(node)
            self.judge(f"{site} fine-tuned", "fine_tuned", model_of(reply), [site])

    def _left_out(self, drawn: Sequence[int]) -> None:
        """Train the federation again without each of these sites, and evaluate it at all sites, including that one."""
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
            except Refusal as refusal:  # fewer sites than the strategy needs, or too many lost rounds
                self.say(f"no federation {name}: {refusal.code}")
                continue
            self.judge(name, "left_out", model, [self.sites.name(node) for node in rest])


def pooled_model(study: Study, rounds: int, say: Callable[[str], None]) -> Model:
    """Train a model of all patients in one place, as long as so many rounds. Only a simulation can do this."""
    from federation.coordinator.baselines import train_together
    from pipeline.site.folder import Site

    say("pooled model: training")
    sites = [Site.open(folder) for folder in simulated_folders()]
    return Model(*pack(train_together(study, sites, rounds=rounds)))
