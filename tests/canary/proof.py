"""The proof: its trials in their order, and the required result of each."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.canary.harness import Trial, Watched
from tests.canary.leaks import AROUND, LEAKS
from tests.canary.table import FOUND, IN_PLAINTEXT, REFUSED, STAYED, Outcome, expected, outcomes
from tests.canary.traffic import DECRYPTED

SHORT = ("name as a metric", "pixels in the weights", "another port")
# Leaks in the replies of a masked study. Three hospitals are all that a round needs, so a refused reply loses it.
MASKED = {
    "pixels in the weights": IN_PLAINTEXT,
    "name as a metric": REFUSED,
    "text in the lowest bits": IN_PLAINTEXT,
    "pixels in the running means": IN_PLAINTEXT,
}
SPARE = 6  # patients whose data no leak takes
# Without the sandbox, every leak that it stops succeeds, except one in a reply that the gateway refuses.
WITHOUT_SANDBOX = {name: FOUND for name in AROUND} | {
    "the hospitals own files": REFUSED,
    "printed text": STAYED,
}


@dataclass
class Results:
    """The results of a proof; `problems` lists every result that is not as required."""

    trials: list[Trial] = field(default_factory=list)
    walls: list[Outcome] = field(default_factory=list)
    no_walls: list[Outcome] = field(default_factory=list)
    masked: list[Outcome] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    planted: int = 0
    seconds: float = 0.0


def prove(folder: Path, *, whole: bool) -> Results:
    """Run the proof in an empty folder; `whole`: with all leaks, those outside the reply also without the sandbox."""
    began = time.monotonic()
    leaks = list(LEAKS) if whole else list(SHORT)
    results = Results()
    with Watched(folder / "walls", leaks=leaks, patients=len(leaks) + SPARE) as watched:
        results.planted = len(watched.planted)
        results.problems += unfound_at_the_source(watched)
        results.trials = [watched.join(), watched.clean(3 if whole else 1), watched.refused(), watched.crash()]
        for trial in results.trials:
            results.problems += not_clean(trial)
        results.problems += not_as_named(results.trials)
        watched.approve()
        results.trials.append(watched.leak())
        results.walls = outcomes(watched, results.trials[-1])
    results.problems += surprises(results.walls, {name: expected(name) for name in leaks})
    results.problems += [f"leaks: {why}" for why in results.trials[-1].out.unread]
    if whole:
        with Watched(folder / "no walls", leaks=AROUND, patients=len(AROUND) + SPARE, sandbox=False) as watched:
            watched.join()
            watched.approve()
            results.no_walls = outcomes(watched, watched.leak())
        results.problems += surprises(results.no_walls, WITHOUT_SANDBOX)
        prove_masked(folder / "masked", results)
    results.seconds = time.monotonic() - began
    return results


def prove_masked(folder: Path, results: Results) -> None:
    """The same in a masked study: what is on the cable must be blind, and the plaintext in the gateway is scanned."""
    with Watched(folder, leaks=list(MASKED), patients=len(MASKED) + SPARE, masked=True) as watched:
        results.problems += unfound_at_the_source(watched)
        joining, clean = watched.join(), watched.clean(2, "masked run")
        watched.approve()
        leaks = watched.leak("masked leaks")
        results.masked = outcomes(watched, leaks)
    for trial in (joining, clean, leaks):
        results.problems += not_clean(trial)
    for trial in (clean, leaks):
        if trial.masked_rounds != trial.rounds.count(""):
            results.problems.append(f"{trial.name}: {trial.masked_rounds} updates were scanned before they were masked")
    results.problems += [f"masked run: {code}" for code in clean.rounds if code]
    results.problems += [f"masked run: {hit.planted} was masked: {hit.disguise}" for hit in clean.in_plaintext]
    results.problems += surprises(results.masked, MASKED)
    results.trials += [clean, leaks]


def unfound_at_the_source(watched: Watched) -> list[str]:
    """Control of the scanner: return what was planted but is not found in the site's own files."""
    found = {hit.planted for hit in watched.scanner.scan(watched.source(), depth=0)}
    return [f"{each.name} is not found in the site's own files" for each in watched.planted if each.name not in found]


def not_clean(trial: Trial) -> list[str]:
    """Return the problems of a trial in which nothing planted may leave and every byte must be readable."""
    problems = [f"{trial.name}: {hit.planted} left: {hit.disguise}" for hit in trial.hits]
    problems += [f"{trial.name}: not readable: {why}" for why in trial.out.unread]
    if not trial.out.parts[DECRYPTED]:
        problems.append(f"{trial.name}: nothing was read")
    return problems


def not_as_named(trials: Sequence[Trial]) -> list[str]:
    """Return how the runs differ from their names: clean, refused, crashed."""
    _, clean, refused, crash = (trial.rounds for trial in trials)
    problems = [f"clean run: {code}" for code in clean if code]
    problems += ["refused run: it was not refused"] if not all(refused) else []
    problems += ["crashed run: the site did not fail"] if not all(crash) else []
    return problems


def surprises(seen: Sequence[Outcome], wanted: Mapping[str, str]) -> list[str]:
    """Return the leaks whose result is not the required one."""
    return [
        f"{outcome.leak}: {outcome.verdict} ({outcome.detail}), expected: {wanted[outcome.leak]}"
        for outcome in seen
        if outcome.verdict != wanted[outcome.leak]
    ]
