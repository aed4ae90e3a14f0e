"""`python -m tests.attacks`: every attack against the real gateway, as a table; 1 if any of them learns a patient."""

import logging
import sys
import time
from collections.abc import Sequence

import torch

from tests.attacks import capacity, codes, downgrade, drift, head, questions, tomography, trap
from tests.attacks.result import Result

MODULES = (trap, head, drift, tomography, questions, codes, downgrade, capacity)
_HEADINGS = ("attack", "the adversary holds", "what it seeks", "learnt", "wrong", "of", "stopped by", "note")


def main(names: Sequence[str]) -> int:
    """Run the modules of these names, or all."""
    torch.set_num_threads(1)  # the order in which threads add numbers up would change their last digits
    logging.disable(logging.CRITICAL)
    began, results = time.monotonic(), []
    sys.stdout.write(_line(_HEADINGS) + _line(["---"] * len(_HEADINGS)))
    for module in MODULES:
        if not names or module.__name__.rpartition(".")[2] in names:
            for result in module.attacks():
                results.append(result)
                sys.stdout.write(_line(_cells(result)))
                sys.stdout.flush()
    succeeded = sum(result.learnt > 0 for result in results)
    sys.stdout.write(f"\n{len(results)} attacks, {succeeded} of them succeeded, {time.monotonic() - began:.0f} s\n")
    return int(succeeded > 0)


def _cells(result: Result) -> list[str]:
    numbers = (result.learnt, result.wrong, result.of)
    return [result.name, result.adversary, result.what, *map(str, numbers), result.stopped_by or "-", result.note]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
