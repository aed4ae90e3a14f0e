"""What the steps after the last round find out about the federated model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import expit

from federation.protocol.operating_points import Chosen
from federation.runs.results import Audit, ModelFigures
from models.familiarity import Familiarity
from models.operating_points import MissingPoint, OperatingPoint
from pipeline.evaluation.figures import Deployed

Figures = dict[int, dict[str, float]]  # one entry for each site, by node id


@dataclass(frozen=True)
class Calibrated:
    """A model's calibration and thresholds, and what is known of each threshold, by label and point.

    `familiarity`: None if too few sites release statistics of their scans' appearance. `answers`: the sites' own
    values, unless only sums are known. Each site's gateway recomputes calibration and thresholds from them before it
    answers a request that uses them.
    """

    deployed: Deployed
    answers: Sequence[Mapping[str, float]]
    choices: Mapping[str, Mapping[str, Chosen | MissingPoint]]
    familiarity: Familiarity | None

    def operating_points(self) -> dict[str, dict[str, OperatingPoint]]:
        """Return the thresholds as calibrated probabilities, as far as there are any."""
        return {
            label: {
                point: OperatingPoint(
                    threshold=float(expit(platt.slope * at.logit + platt.intercept)), evidence=at.evidence
                )
                for point, at in choices.items()
                if isinstance(at, Chosen)
            }
            for label, choices in self.choices.items()
            if (platt := self.deployed.calibration.get(label))
        }

    def missing_points(self) -> dict[str, dict[str, MissingPoint]]:
        """Return why there is no threshold, for each one that is missing."""
        return {label: self._missing(label, choices) for label, choices in self.choices.items()}

    def _missing(self, label: str, choices: Mapping[str, Chosen | MissingPoint]) -> dict[str, MissingPoint]:
        missing = {point: at for point, at in choices.items() if isinstance(at, MissingPoint)}
        if label in self.deployed.calibration or any(at.why == "few_hospitals" for at in missing.values()):
            return missing
        return dict.fromkeys(choices, MissingPoint(why="not_calibrated"))


@dataclass(frozen=True)
class Examined:
    """The results of all models, and of the federated one its calibration, its audit and its figures.

    `means`: over all sites, weighted by patients.
    """

    models: Sequence[ModelFigures]
    calibrated: Calibrated
    audit: Audit | None
    means: Mapping[str, float]
