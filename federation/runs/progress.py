"""The progress of a run, in one line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from federation.protocol.study_config import Study
from federation.runs.run_folder import read_history, read_study
from models.refusal import Refusal

Entry = TypeVar("Entry", bound=Mapping[str, Any])
LATEST = 5  # number of last rounds from which the remaining time is estimated


@dataclass(frozen=True)
class Standing:
    """Completed rounds, total rounds, and the metrics of the last round."""

    done: int
    total: int
    text: str


@dataclass
class Progress:
    """Reads the progress of the run that is watched."""

    server: Path
    run: str = ""
    _last: Standing | None = field(default=None, init=False)

    def watch(self, run: str) -> None:
        """Watch this run from now on."""
        self.run, self._last = run, None

    def now(self) -> Standing | None:
        """Return the progress; None before a run has started. If the file cannot be read now, return the last value."""
        if self.run:
            folder = self.server / "runs" / self.run
            try:
                self._last = standing(read_study(folder), read_history(folder))
            except Refusal:  # the server is writing the file at the moment
                return self._last
        return self._last


def rounds_of(history: Sequence[Entry]) -> list[Entry]:
    """Return the entries of a run's history that describe rounds; the others describe evaluations."""
    return [entry for entry in history if "round" in entry and "lost" in entry]


def asked_in(entry: Mapping[str, Any]) -> set[str]:
    """Return the sites that a round sampled: each of them counted or was refused with a code."""
    return {*entry["sites"], *entry.get("refused", {})}


def standing(study: Study, history: Sequence[Mapping[str, Any]], *, has_ended: bool = False) -> Standing:
    """Return a run's progress from its history. The remaining time covers the rounds, not the evaluations.

    `has_ended`: no further round is expected, so there is no remaining time.
    """
    rounds, total = rounds_of(history), study.study.rounds
    if not rounds:
        return Standing(0, total, "ended before round 1" if has_ended else "waiting for the first round to end")
    last = rounds[-1]
    seconds = (total - last["round"]) * fmean(entry["seconds"] for entry in rounds[-LATEST:])
    left = f"{'at most' if study.stopping else 'about'} {duration(seconds)} left"
    # A narrow terminal cuts off the end, so the most important part comes first.
    parts = [f"round {last['round']} of {total}"]
    if not (has_ended and seconds):
        parts.append(left if seconds else "the last round is done")
    parts.append(f"{len(last['sites'])} of {study.study.asked_a_round} sites")
    if "train_loss" in last["means"]:
        parts.append(f"loss {last['means']['train_loss']:.3f}")
    if "auroc_severe" in last["means"]:
        parts.append(f"mean validation AUROC of severe {last['means']['auroc_severe']:.2f}")
    return Standing(last["round"], total, " · ".join(parts))


def duration(seconds: float) -> str:
    """Format a duration in hours and minutes, in minutes, or in seconds."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
