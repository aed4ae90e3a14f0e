"""Run every attack on the real gateway and print a table. Exit with 1 if an attack learns more than guessing gives.

    python -m tests.attacks [MODULE ...]

Without a module's name it also writes the table into docs/one-reply.md. Only the attacks in `known` may learn
something.
"""

import logging
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from tests.attacks import (
    attention_replies,
    begun,
    capacity,
    codes,
    downgrade,
    drift,
    gate,
    head,
    head_updates,
    invented,
    joined,
    losses,
    moments,
    near_features,
    picture,
    questions,
    scan_trap,
    tomography,
    trap,
    typical,
)
from tests.attacks.known import KNOWN
from tests.attacks.result import Result

MODULES = (
    trap,
    head,
    drift,
    begun,
    tomography,
    gate,
    scan_trap,
    moments,
    near_features,
    head_updates,
    attention_replies,
    picture,
    joined,
    questions,
    invented,
    losses,
    typical,
    codes,
    downgrade,
    capacity,
)
BEGIN, END = "<!-- begin: attacks -->", "<!-- end: attacks -->"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "one-reply.md"
_HEADINGS = ("attack", "what the server holds", "learnt / wrong / of", "by chance", "stopped by")


def main(names: Sequence[str]) -> int:
    """Run the modules with these names, or all."""
    torch.set_num_threads(1)  # the order in which threads add numbers changes the last digits of sums
    logging.disable(logging.CRITICAL)
    began, results = time.monotonic(), []
    for module in MODULES:
        if not names or module.__name__.rpartition(".")[2] in names:
            for result in module.attacks():
                results.append(result)
                sys.stdout.write(f"{time.monotonic() - began:4.0f} s {'|'.join(_cells(result))} {result.note}\n"[:300])
                sys.stdout.flush()
    if not names:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    failed = unknown(results)
    learnt = sum(result.is_learnt for result in results)
    sys.stdout.write(
        f"\n{len(results)} attacks, {learnt} of them learn more than guessing gives, "
        f"{len(failed)} of these not named in tests/attacks/known.py, {time.monotonic() - began:.0f} s\n"
    )
    return int(bool(failed))


def unknown(results: Iterable[Result]) -> list[Result]:
    """Return the results that learn something and are not listed as a known limit."""
    return [result for result in results if result.is_learnt and result.name not in KNOWN]


def table(results: Iterable[Result]) -> str:
    """Return the table as Markdown, followed by the known limits and their reasons."""
    results = list(results)
    lines = [_line(_HEADINGS), _line(["---"] * len(_HEADINGS)), *(_line(_cells(result)) for result in results)]
    limits = [f"- {_limit(result)}\n" for result in results if result.name in KNOWN]
    return "".join(lines) + ("\nKnown limits:\n\n" if limits else "") + "".join(limits)


def _limit(result: Result) -> str:
    return f"**{result.name}**{f' ({result.note})' if result.note else ''}: {KNOWN[result.name]}"


def with_table(page: str, results: Iterable[Result]) -> str:
    """Return the page with the new table. Raises ValueError if the page has no marks for it."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError("the page has no marks for the table")
    return f"{before}{begin}\n{table(results)}{end}{after}"


def _cells(result: Result) -> list[str]:
    numbers = f"{result.learnt} / {result.wrong} / {result.of}"
    chance = f"{result.by_chance:.1f}" if result.by_chance else "-"
    stopped = f"`{result.stopped_by}`" if result.stopped_by else "**not stopped**" if result.is_learnt else "-"
    return [f"{result.name}: {result.what}", result.adversary, numbers, chance, stopped]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
