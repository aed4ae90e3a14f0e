"""Records the origin of a released model: its hospitals, rounds, audit and training, as known to the run.

Part of model.json. Numbers of patients are given only in bands, and every figure was released by its hospital.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SiteRecord(_Record):
    """One hospital of the run.

    `patients`: a band such as "50-99", or "" if it was not reported. `trained`: the model was trained on its patients.
    `rounds`: number of rounds in which its update counted. `dropouts`: number of rounds in which it was asked but its
    update did not count, by code. `figures`: metrics of the model on its test patients. `left_out`: metrics on the same
    patients of the federation without this hospital, if the study requested them. Intervals (95 %) have the suffixes
    `_low` and `_high`.
    """

    patients: str
    software: str
    trained: bool
    rounds: int
    dropouts: dict[str, int]
    figures: dict[str, float]
    left_out: dict[str, float]


class FlagRecord(_Record):
    """A reason to distrust the model: a code, the hospital, and the figure behind it, in words."""

    code: str
    site: str
    says: str


class AuditRecord(_Record):
    """The results of the shortcut audit.

    `probe_accuracy`: balanced accuracy with which the embedding of a held-out patient identifies the hospital;
    `probe_chance`: accuracy of guessing. Both are None if not measured. `sites`: the audit's figures by hospital.
    `means`: their means over the hospitals of a masked study, which are all that is known of it.
    """

    probe_accuracy: float | None
    probe_chance: float | None
    sites: dict[str, dict[str, float]]
    flags: tuple[FlagRecord, ...]
    means: dict[str, float] = {}


class SumsRecord(_Record):
    """What is known of a masked study: `together`, figures of all hospitals' test patients, and `means` over hospitals.

    `known`: for each mean the share of test patients whose hospitals have the figure. `sites`: hospitals by label.
    """

    together: dict[str, float]
    means: dict[str, float]
    known: dict[str, float]
    sites: dict[str, int]


class Provenance(_Record):
    """The run whose candidate was released.

    `candidate`: SHA-256 of the candidate, which has the same weights. `audit` is None if there was none.
    `doubts`: the reasons to doubt the model, those of the audit included; an empty `site` means all. `despite_flags`:
    why it was released nevertheless. `study`: the study file of the run. `sums`: None if the study was not masked.
    """

    candidate: str
    seed: int
    rounds_planned: int
    rounds_lost: int
    stopped_early: bool
    strategy_options: dict[str, float]
    sites: dict[str, SiteRecord]
    audit: AuditRecord | None
    doubts: tuple[FlagRecord, ...] = ()
    despite_flags: str = ""
    study: dict[str, Any]
    sums: SumsRecord | None = None
