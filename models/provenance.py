"""How a released model came about: its hospitals, rounds, audit and training, as far as the run knows.

Part of model.json. Patients appear in bands alone, and every figure is one that its hospital let out.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SiteRecord(_Record):
    """One hospital of the run.

    `patients`: a band such as "50-99", or "" where it did not tell. `trained`: its patients are in the model. `rounds`:
    in which its update counted. `dropouts`: rounds in which it was asked and did not count, by the code of why.
    `figures`: of the model on its test patients; `left_out`: of the federation without this hospital on the same, where
    the study asked for that. Intervals are at `_low` and `_high` (95 %).
    """

    patients: str
    software: str
    trained: bool
    rounds: int
    dropouts: dict[str, int]
    figures: dict[str, float]
    left_out: dict[str, float]


class FlagRecord(_Record):
    """A reason to distrust: a code, the hospital, and the figure that led to it, in words."""

    code: str
    site: str
    says: str


class AuditRecord(_Record):
    """What the shortcut audit found.

    `probe_accuracy`: how well the embedding of a held-out patient tells the hospital (balanced accuracy), beside what
    guessing gives; both None where it was not measured. `sites`: the audit's figures by hospital.
    """

    probe_accuracy: float | None
    probe_chance: float | None
    sites: dict[str, dict[str, float]]
    flags: tuple[FlagRecord, ...]


class Provenance(_Record):
    """Of the run whose candidate was released.

    `candidate`: its SHA-256; the weights are the same. `audit` is None where none was made. `despite_flags`: why it was
    released although the audit had flags. `study`: the study file as it ran.
    """

    candidate: str
    seed: int
    rounds_planned: int
    rounds_lost: int
    stopped_early: bool
    strategy_options: dict[str, float]
    sites: dict[str, SiteRecord]
    audit: AuditRecord | None
    despite_flags: str = ""
    study: dict[str, Any]
