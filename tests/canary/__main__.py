"""`python -m tests.canary`: run the whole proof (some minutes) and write its tables into docs/canary.md.

The exit status is 1 if anything failed.
"""

import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.canary.cable import Cable
from tests.canary.proof import prove
from tests.canary.table import write_tables

PAGE = Path(__file__).parents[2] / "docs" / "canary.md"


def main() -> int:
    # The proof stops the nodes with SIGINT. A background job of a shell ignores SIGINT, and so do its child processes.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if why := Cable.why_not():
        sys.stdout.write(f"The proof cannot be run here: {why}.\n")
        return 1
    with TemporaryDirectory(prefix="canary-") as folder:
        results = prove(Path(folder), whole=True)
    write_tables(PAGE, results)
    for outcome in results.walls:
        sys.stdout.write(f"{outcome.leak}: {outcome.verdict} ({outcome.detail})\n")
    for problem in results.problems:
        sys.stdout.write(f"PROBLEM {problem}\n")
    sys.stdout.write(f"{results.planted} things planted, {len(results.problems)} problems, {results.seconds:.0f} s\n")
    return int(bool(results.problems))


if __name__ == "__main__":
    sys.exit(main())
