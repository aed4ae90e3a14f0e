"""The steps after the last round in a study with secure aggregation: as `final_evaluation`, from sums alone.

The questions are the same. The server learns the pooled moments of the training patients, then the counts of the
validation patients by class and raw logit, from which it fits the calibration and chooses thresholds, and the counts
of the test patients. A sum that is lost leaves out what depends on it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ConfigRecord

from federation.coordinator import shortcut_audit
from federation.coordinator.examined import Calibrated, Examined
from federation.coordinator.final_evaluation import pooled_model
from federation.coordinator.local_models import model_records
from federation.coordinator.rounds import Model
from federation.coordinator.summed_questions import Sums, SumsAndMoments
from federation.protocol import pooled_counts
from federation.protocol.flat_weights import Arrays
from federation.protocol.metric_allowlist import FIGURES, LABELS, Kind
from federation.protocol.reply_validation import encode
from federation.protocol.simulated_sites import simulated_folders
from federation.protocol.study_config import Study
from federation.protocol.summed_answers import Summed, load_counts, logit_counts, reported, sites_with, square_of
from federation.runs.results import FEDERATED, ModelFigures
from federation.runs.results import Kind as ModelKind
from models.familiarity import APPEARANCE_SIZE, Distances, Familiarity, Moments, limit
from models.operating_points import POINTS, MissingPoint, few_hospitals
from pipeline.evaluation.figures import Deployed


@dataclass
class SummedExamination:
    """Questions to all sites together about models. `models`: the figures of those that were tested."""

    study: Study
    sums: Sums
    say: Callable[[str], None]
    models: list[ModelFigures] = field(default_factory=list)

    def examine(self, model: Model, trained_at: list[str], rounds: int) -> Examined:
        """Calibrate and test the federated model, and judge whether it may read the scanner instead of the lung.

        `rounds`: of the pooled model.
        """
        # The embedding uses training patients, which the noise of a private study does not cover.
        calibrated = self.calibrate(model, *((None, 0) if self.study.privacy is not None else self.embed(model)))
        audited = self.study.audits
        found = self.judge(FEDERATED, "federated", model, trained_at, audit=audited)
        means = dict(found.means) if found else {}
        audit = shortcut_audit.judge_means(means) if audited else None
        if self.study.evaluation.pooled and simulated_folders():
            self.judge("pooled", "pooled", pooled_model(self.study, rounds, self.say), trained_at)
        shown = {name: value for name, value in means.items() if name in FIGURES["evaluate.test"]}
        return Examined(self.models, calibrated, audit, shown)

    def embed(self, model: Model) -> tuple[Moments | None, int]:
        """Return the moments of the appearance of all training patients, and of how many sites; None and 0 if lost."""
        asked = self._ask("evaluate.embed", model, "features of training patients")
        return (asked[1]["looks"], asked[0].sites) if asked else (None, 0)

    def calibrate(self, model: Model, looks: Moments | None, sites: int) -> Calibrated:
        """Fit one calibration and choose thresholds from the counts of all validation patients.

        `looks`, `sites`: what `embed` returned; the familiarity model is made from it and the distances from it.
        """
        typical: Arrays = dict.fromkeys(("mean", "variance"), np.zeros(APPEARANCE_SIZE, np.float32))  # no statistics
        if looks is not None:
            typical = {"mean": looks.mean, "variance": looks.variance}
        asked = self._ask("evaluate.calibrate", model, "calibration", typical=typical)
        if asked is None:
            nothing = {label: dict.fromkeys(POINTS, MissingPoint(why="few_hospitals")) for label in LABELS}
            return Calibrated(Deployed(), (), nothing, None)
        summed, _ = asked
        choices = pooled_counts.choose_all(summed)
        deployed = Deployed(pooled_counts.calibration(summed), pooled_counts.thresholds(choices))
        return Calibrated(deployed, (), choices, self._familiarity(typical, summed, min(sites, summed.sites)))

    def _familiarity(self, typical: Arrays, summed: Summed, sites: int) -> Familiarity | None:
        """Return the familiarity model from the mean and spread of all validation patients' log distances.

        No hospital's own limit is known, so the limit is that of all patients together. One hospital with false or
        unusual distances moves it.
        """
        names = ("distance_mean", square_of("distance_mean"), square_of("distance_sd"))
        if not (set(names) <= set(summed.means) and typical["variance"].any()):
            self.say("familiarity of scans is not available: too few sites release the statistics for it")
            return None
        mean, of_means, within = (summed.means[name] for name in names)
        spread = max(0.0, within + of_means - mean**2) ** 0.5  # the law of total variance
        patients = round(summed.patients * summed.known["distance_mean"])
        return Familiarity(
            mean=tuple(typical["mean"].tolist()),
            variance=tuple(typical["variance"].tolist()),
            limit=limit([Distances(mean, spread, patients)], robust=False),
            sites=sites,
        )

    def judge(
        self, name: str, kind: ModelKind, model: Model, trained_at: list[str], *, audit: bool = False
    ) -> Summed | None:
        """Test one model on all sites' test patients, and add it to `models`. Return the sums, None if lost.

        Labels with too few hospitals have no figures.
        """
        what = "test" if name == FEDERATED else f"test of {name}"
        asked = self._ask("evaluate.test", model, what, audit=audit)
        summed = asked[0] if asked else None
        counted = {label: summed.counts[sites_with(label)] if summed else 0 for label in LABELS}
        withheld = {label: few_hospitals(counted[label]) for label in LABELS if not (summed and summed.covers(label))}
        for label, why in withheld.items():
            self.say(f"{what} without figures of {label}: {why}")
        if summed:
            summed = _without(summed, withheld)
        self.models.append(
            ModelFigures(
                name=name, kind=kind, trained_at=sorted(trained_at), figures={}, summed=summed, withheld=withheld
            )
        )
        return summed

    def _ask(
        self,
        kind: Kind,
        model: Model,
        what: str,
        *,
        typical: Arrays | None = None,
        audit: bool = False,
    ) -> SumsAndMoments | None:
        """Return the sums, None if there are none."""
        records = model_records(model) | ({"typical": encode(typical)} if typical else {})
        records["config"] = ConfigRecord({"audit": audit} if kind == "evaluate.test" else {})
        return self.sums.ask(kind, records, what)


def _without(summed: Summed, labels: Mapping[str, str]) -> Summed:
    """Return the sums of a test without the figures of these labels, but with their numbers of hospitals."""
    table = FIGURES["evaluate.test"]
    of_labels = {name for name in reported("evaluate.test") if table[name].label in labels}
    of_labels |= {square_of(name) for name in of_labels}
    for label in labels:
        of_labels |= {*logit_counts(label).values(), *load_counts(label).values()}
    parts = {
        part: {name: value for name, value in getattr(summed, part).items() if name not in of_labels}
        for part in ("counts", "means", "known")
    }
    return summed.model_copy(update=parts)
