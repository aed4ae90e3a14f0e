"""The results of a finished run in one file, SERVER_DIR/runs/<run>/results.json.

The report, the comparison of runs and the release read this file. Hospitals appear under their site names. It
contains only metrics that a site has released.
"""

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from federation.protocol.handshake import SiteAbout
from federation.protocol.metric_allowlist import EXAMPLES
from federation.protocol.study_config import Study
from federation.protocol.summed_answers import Summed
from federation.runs import reasons
from federation.runs.run_folder import check_history
from models.calibration import Platt
from models.operating_points import MissingPoint, OperatingPoint
from models.refusal import Refusal

RESULTS = "results.json"
FEDERATED = "federated"

Kind = Literal["federated", "local", "left_out", "fine_tuned", "pooled"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelFigures(_Part):
    """The metrics of one model at every site that evaluated it.

    `name`: "federated", "north alone", "without north", "north fine-tuned", "pooled". `trained_at`: the sites on
    whose patients it was trained. `figures`: by site, then by the names of `protocol.metric_allowlist` and
    `num-examples`.

    `summed`: in a study with secure aggregation, what the server learns over all sites together; `figures` is then
    empty. `withheld`: labels without figures in `summed`, and why.
    """

    name: str
    kind: Kind
    trained_at: list[str]
    figures: dict[str, dict[str, float]]
    summed: Summed | None = None
    withheld: dict[str, str] = {}


class Probe(_Part):
    """How well the site can be predicted from held-out embeddings.

    `confusion`: for each site the share of its test patients that is assigned to each site. `accuracy` is the mean of
    the diagonal (balanced), `chance` 1 / sites.
    """

    confusion: dict[str, dict[str, float]]
    accuracy: float
    chance: float


class Flag(_Part):
    """A reason to distrust the model: a code of the table of reasons, the site, and the metric that caused it.

    `site`: "" if the metric is a mean over all sites, in a study with secure aggregation.
    """

    code: str
    site: str
    says: str


class Audit(_Part):
    """The shortcut audit. `sites`: the audit's metrics by site. `means`: over all sites, in a masked study.

    `probe` is None if too few sites took part, or for the reason in `no_probe`.
    """

    probe: Probe | None
    sites: dict[str, dict[str, float]]
    flags: list[Flag]
    means: dict[str, float] = {}
    no_probe: str = ""


class Results(_Part):
    """All data of a run that its report needs."""

    format: Literal[1] = 1
    run: str
    software: str
    synthetic: bool
    study: Study
    sites: dict[str, SiteAbout]
    history: list[dict[str, Any]]
    models: list[ModelFigures]
    calibration: dict[str, Platt]
    operating_points: dict[str, dict[str, OperatingPoint]]  # by label, then rule_out or rule_in
    missing_points: dict[str, dict[str, MissingPoint]] = {}  # why there is none; earlier versions did not record it
    audit: Audit | None
    release: str  # SHA-256 of the candidate
    stopped_early: bool = False

    def model(self, name: str) -> ModelFigures | None:
        return next((each for each in self.models if each.name == name), None)


def read_results(run: Path) -> Results:
    """Read results.json of a finished run.

    Parameters
    ----------
    run : Path
        The run's folder, such as `rehearse` returns.

    Returns
    -------
    Results
        The study, its sites, its rounds, each model's figures at each site, thresholds and audit.

    Raises
    ------
    Refusal
        E_RESULTS where there are none yet or they are of another format.
    """
    try:
        results = Results.model_validate_json((run / RESULTS).read_bytes())
        _check(results)
        return results
    except (OSError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        raise Refusal(reasons.RESULTS, private=str(error)) from error


def _check(results: Results) -> None:
    """Raise ValueError if a part lacks what its readers use. The types of the other parts tell what they need."""
    check_history(results.history)
    rows = [row for model in results.models for row in model.figures.values()]
    if not all(0 <= row.get(EXAMPLES, -1.0) < math.inf for row in rows):
        raise ValueError(f"a row of figures without {EXAMPLES}")
