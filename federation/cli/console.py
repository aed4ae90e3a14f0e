"""Output of the command line: results to standard output, progress and refusals to standard error.

With --json a command prints one JSON object; a refusal is {"refused": {"code", "says", "remedy"}}.
"""

import errno
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from federation.cli.reasons import OUTPUT
from federation.system.terminal_text import printable, without_colours
from models.refusal import Refusal

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from federation.runs.progress import Standing


def errors() -> "Console":
    """Return the console for people, on standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Print a text for people on standard error. A part of it may come from a server or a file (`printable`)."""
    errors().print(printable(without_colours(text), keep="\n"), markup=False, soft_wrap=True)


def quoted(argument: Path | str) -> str:
    """Return an argument as a shell takes it, for a command that people copy."""
    return shlex.quote(str(argument))


def counted(count: int, thing: str, things: str = "") -> str:
    """Return a number with its noun, such as "1 file" or "2 files". `things`: the plural, if it is not with an s."""
    return f"{count} {thing if count == 1 else things or thing + 's'}"


def print_json(content: Any) -> None:
    """Print the result as JSON on standard output."""
    sys.stdout.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def print_json_list(items: Iterable[Any]) -> None:
    """Print a list as JSON, one item at a time, like `print_json`: the list may be too long for the memory."""
    before = "["
    for item in items:
        text = json.dumps(item, indent=1, ensure_ascii=False).replace("\n", "\n ")  # a line break in a text is escaped
        sys.stdout.write(f"{before}\n {text}")
        before = ","
    sys.stdout.write("[]\n" if before == "[" else "\n]\n")


_BORDER_CHARACTERS = 3  # of each column of a table: a line, and a space on both sides
_LEAST_CHARACTERS = 8  # of a column that is wrapped: narrower ones cannot be read


def print_table(
    columns: Sequence[str], lines: Sequence[Sequence[str]], *, title: str | None = None, whole: int = 0
) -> None:
    """Print the result as a table on standard output. The first `whole` columns are never shortened or wrapped.

    A column of single words is wrapped only if the table would be too wide although all others are as narrow as words.
    If the columns had no room even so, each line is printed as a list of its cells, with the columns' names.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, table = Console(highlight=False), Table(title=title, title_justify="left")
    shown = [[printable(cell, keep="\n") for cell in line] for line in lines]
    of_column = [[name, *(line[place] for line in shown)] for place, name in enumerate(columns)]
    least = sum(_widest_word(cells) + _BORDER_CHARACTERS for cells in of_column)
    are_words = [least < console.width and all(len(cell.split()) <= 1 for cell in cells) for cells in of_column]
    is_kept = [place < whole or is_word for place, is_word in enumerate(are_words)]
    if lines and not _has_room(of_column, is_kept, console.width):
        _print_as_lists(console, columns, shown, title)
        return
    for cells, no_wrap in zip(of_column, is_kept, strict=True):
        table.add_column(cells[0], no_wrap=no_wrap, overflow="fold")
    for line in shown:
        table.add_row(*map(escape, line))  # a remedy may name [join] of site.toml
    console.print(table)


def _has_room(of_column: Sequence[Sequence[str]], is_kept: Sequence[bool], width: int) -> bool:
    """Whether the columns that are wrapped are wide enough for their words, or at least to be read."""
    from rich.cells import cell_len

    both = list(zip(of_column, is_kept, strict=True))
    kept = sum(max(cell_len(line) for cell in cells for line in cell.split("\n")) for cells, keep in both if keep)
    wrapped = [_widest_word(cells) for cells, keep in both if not keep]
    free = width - kept - _BORDER_CHARACTERS * len(both) - 1
    return free >= len(wrapped) * min(_LEAST_CHARACTERS, max(wrapped, default=0))


def _print_as_lists(
    console: "Console", columns: Sequence[str], lines: Sequence[Sequence[str]], title: str | None
) -> None:
    """Print each line of a table as its first cell, and below it the others that are not empty, indented."""
    names = [" ".join(name.split()) for name in columns]
    if title:
        console.print(title, markup=False)
    for line in lines:
        for place, (name, cell) in enumerate(zip(names, line, strict=True)):
            if text := ", ".join(part.strip() for part in cell.split("\n") if part.strip()):
                indent = "  " if place else ""
                console.print(f"{indent}{name}: {text}" if name else f"{indent}{text}", markup=False)


def _widest_word(cells: Sequence[str]) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, " ".join(cells).split()), default=0)


def print_refusal(refusal: Refusal, *, as_json: bool) -> None:
    """Print a refusal and its remedy. `private` is shown on this screen only, never in the JSON."""
    if as_json:
        print_json({"refused": refusal.to_json()})
        return
    say(f"{refusal}")
    if refusal.private and not goes_to_the_journal():
        say(f"  here: {refusal.private}")
    say(f"  {refusal.remedy}")
    for page in re.findall(r"docs/[a-z-]+\.md", refusal.remedy):
        say(f"  (fedthorax explain {page} shows this page.)")


class OutputError(OSError):
    """Standard output cannot be written. Of any other file, OSError says the same."""


@contextmanager
def watched_output() -> Iterator[None]:
    """Raise OutputError during the block, and at its end, if standard output cannot be written."""
    if sys.stdout is None:  # the caller closed it
        yield
        return
    with redirect_stdout(cast(IO[str], _Watched(sys.stdout))):
        yield
    sys.stdout.flush()  # else the interpreter does it at its end, and shows a stack trace


def give_up_output(error: OSError) -> None:
    """Say that the output cannot be written, unless its reader just ended, as `head` does; drop the rest of it."""
    if sys.stdout is not None:
        _to_nowhere(sys.stdout)
    if error.errno != errno.EPIPE:
        with suppress(OSError):
            print_refusal(Refusal(OUTPUT, problem=error.strerror or type(error).__name__), as_json=False)


def goes_to_the_journal() -> bool:
    """Whether systemd's journal records standard error of this process (systemd.exec(5), JOURNAL_STREAM)."""
    status = os.fstat(2)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error. Call it with `(done, total)`. With a total of 0 nothing is drawn.

    No bar stays above an error that came before anything was done.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=errors()
    ) as bar:
        task = bar.add_task(what, total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=max(total, 1) if done else total)

        try:
            yield report
        except BaseException:
            if not bar.tasks[0].completed:
                bar.remove_task(task)
            raise


@contextmanager
def live(standing: Callable[[], "Standing | None"]) -> Iterator[Callable[[str], None]]:
    """Print lines on standard error during the block; on a terminal, with a bar below them that `standing` fills."""
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def draw() -> "RenderableType":
        if (now := standing()) is None:
            return Text("")
        table = Table.grid(padding=(0, 1))
        table.add_row(
            ProgressBar(total=now.total, completed=now.done, width=20),
            Text(now.text, no_wrap=True, overflow="ellipsis"),
        )
        return table

    console = errors()
    if not console.is_terminal:
        yield say
        return
    with Live(
        console=console,
        get_renderable=draw,
        refresh_per_second=1,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    ):
        yield lambda text: console.print(text, markup=False, soft_wrap=True)


@contextmanager
def outliving_the_terminal() -> Iterator[None]:
    """Keep running during the block when the terminal is closed or the reader of the output ends."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with (
            redirect_stdout(cast(IO[str], _Outlet(sys.stdout))),
            redirect_stderr(cast(IO[str], _Outlet(sys.stderr))),
        ):
            yield
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        signal.signal(signal.SIGHUP, before)


class _Watched:
    """A stream whose errors tell that they are its own."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from error

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Outlet:
    """A stream that discards its output once its reader has gone."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            _to_nowhere(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _to_nowhere(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _to_nowhere(stream: IO[str]) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())  # so that the rest of the stream's buffer can be flushed
    os.close(nowhere)
