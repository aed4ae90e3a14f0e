"""How the command line speaks: results to standard output, progress and refusals to standard error.

With --json a command prints one JSON object; a refusal is {"refused": {"code", "says", "remedy"}}.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from models.refusal import Refusal

if TYPE_CHECKING:
    from rich.console import Console


def errors() -> "Console":
    """The console for people, on standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """One line for people."""
    errors().print(text, markup=False, soft_wrap=True)


def print_json(content: Any) -> None:
    """The result for machines."""
    sys.stdout.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def print_table(columns: Sequence[str], lines: Sequence[Sequence[str]], *, title: str | None = None) -> None:
    """The result for people, on standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left")
    for line in lines:
        table.add_row(*map(escape, line))  # a remedy may name [join] of site.toml
    Console(highlight=False).print(table)


def print_refusal(refusal: Refusal, *, as_json: bool) -> None:
    """Why nothing was done and what to do next. `private` is for this screen alone, never for the JSON."""
    if as_json:
        print_json({"refused": {"code": refusal.code, "says": refusal.says, "remedy": refusal.remedy}})
        return
    say(f"{refusal}")
    if refusal.private and not _goes_to_the_journal():
        say(f"  here: {refusal.private}")
    say(f"  {refusal.remedy}")


def _goes_to_the_journal() -> bool:
    """Whether systemd keeps what this process writes to standard error (systemd.exec(5), JOURNAL_STREAM)."""
    status = os.fstat(2)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error; hand it `(done, total)`. Nothing is drawn where there is nothing to do."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=errors()
    ) as bar:
        task = bar.add_task(what, total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=max(total, 1) if done else total)

        yield report
