"""The result of each leak, and the tables of docs/canary.md."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.canary.harness import Trial, Watched
from tests.canary.leaks import AROUND
from tests.canary.traffic import DECRYPTED

if TYPE_CHECKING:
    from tests.canary.proof import Results

REFUSED, STOPPED, FOUND = "refused at the gateway", "stopped by the sandbox", "found by the scanner"
IN_PLAINTEXT = "found in the gateway's plaintext, masked on the wire"
STAYED, UNSEEN, UNTRIED = "stayed at the site", "not stopped, not found", "not tried"
# Known to leave undetected: the data is too small, or it is hidden in a way that no scanner can detect.
LEAVES_UNSEEN = {"one pixel as a figure", "text in scattered bits"}
# They have the shape of the study's model, so no gateway can distinguish them from weights.
LEAVES = {"pixels in the weights", "pixels in the running means", "text in the lowest bits"}
_NOTE = re.compile(r"leak of round (\d+): (.*)")
_BEGIN, _END = "<!-- begin: {} -->", "<!-- end: {} -->"


@dataclass(frozen=True)
class Outcome:
    """The result of one leak."""

    leak: str
    verdict: str
    detail: str


def expected(leak: str) -> str:
    """Return the required result of a leak when both gateway and sandbox run."""
    if leak in LEAVES_UNSEEN:
        return UNSEEN
    if leak in LEAVES:
        return FOUND
    if leak == "printed text":
        return STAYED
    return STOPPED if leak in AROUND else REFUSED


def outcomes(watched: Watched, trial: Trial) -> list[Outcome]:
    """Return the result of each leak of a trial."""
    log = (watched.site / "logs" / "client.log").read_text()
    said = {int(number): text for number, text in _NOTE.findall(log)}  # the last note of each round
    found = []
    for number, leak in enumerate(watched.leaks):
        hits = [hit for hit in trial.hits if hit.planted.startswith(f"{leak}:")]
        masked = [hit for hit in trial.in_plaintext if hit.planted.startswith(f"{leak}:")]
        files = [path for path in watched.drops(number) if path.exists()]
        if hits or files:
            verdict, detail = FOUND, hits[0].disguise if hits else "a file outside the site"
        elif masked:
            verdict, detail = IN_PLAINTEXT, masked[0].disguise
        elif number + 1 not in said:
            verdict, detail = UNTRIED, trial.rounds[number]
        elif leak in AROUND:
            verdict, detail = _around(watched, number, trial.rounds[number], said[number + 1])
        else:
            verdict, detail = _through(leak, trial.rounds[number])
        for path in files:
            path.unlink()
        found.append(Outcome(leak, verdict, detail))
    return found


def _through(leak: str, code: str) -> tuple[str, str]:
    """Return the result of a leak through the reply if the scanner found nothing of it.

    If nothing stops a leak, the scanner finds it unless it is in LEAVES_UNSEEN (test_leaks.py). So this was stopped.
    """
    if leak in LEAVES_UNSEEN and not code:
        return UNSEEN, "the reply was accepted"
    return REFUSED, code or "the gateway composed the reply without it"


def _around(watched: Watched, number: int, code: str, said: str) -> tuple[str, str]:
    """Return the result of a leak outside the reply if the scanner found nothing of it."""
    if said.startswith("blocked"):
        return STOPPED, said
    if code:
        return REFUSED, code
    name = watched.patients[number].name.encode()
    logs = [path.name for path in (watched.site / "logs").iterdir() if path.is_file() and name in path.read_bytes()]
    return (STAYED, f"in {', '.join(sorted(logs))}") if logs else (STOPPED, "it did not leave the sandbox")


def write_tables(page: Path, results: "Results") -> None:
    """Write the results into the marked parts of docs/canary.md."""
    runs = [
        [
            trial.name,
            _rounds(trial),
            f"{trial.out.frames:,}",
            f"{trial.out.bytes:,}",
            f"{len(trial.out.parts[DECRYPTED]):,}",
            str(len(trial.out.unread)),
            str(len(trial.hits)),
            f"{sum(trial.plaintext):,}" if trial.masked else "",
            str(len({hit.planted for hit in trial.in_plaintext})) if trial.masked else "",
        ]
        for trial in results.trials
    ]
    head = ["run", "the site's rounds", "frames", "bytes", "of them decrypted content", "not readable", "hits"]
    head += ["plaintext before masking, bytes", "hits in it"]
    _replace(page, "runs", _table(head, runs))
    masked = [[o.leak, o.verdict, o.detail] for o in results.masked]
    _replace(page, "masked", _table(["leak", "result", "how"], masked))
    without = {outcome.leak: f"{outcome.verdict}: {outcome.detail}" for outcome in results.no_walls}
    rows = [[o.leak, o.verdict, o.detail, without.get(o.leak, "")] for o in results.walls]
    _replace(page, "leaks", _table(["leak", "result", "how", "without the sandbox"], rows))


def _rounds(trial: Trial) -> str:
    if len(trial.rounds) > 5:  # one round for each leak: see the next table
        return f"{len(trial.rounds)}, below"
    return ", ".join(code or "accepted" for code in trial.rounds) or "none"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _replace(page: Path, name: str, text: str) -> None:
    """Replace the text between the marks of this name."""
    begin, end = _BEGIN.format(name), _END.format(name)
    content = page.read_text(encoding="utf-8")
    before, _, rest = content.partition(begin)
    _, mark, after = rest.partition(end)
    assert mark, f"{page.name} has no marks for {name}"
    page.write_text(f"{before}{begin}\n{text}{end}{after}", encoding="utf-8")
