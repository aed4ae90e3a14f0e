"""Make the manual page fedthorax(1) from the command line's own help, in the language of man(7).

`python -m federation.cli.man_page` prints it; SOURCE_DATE_EPOCH is the date in its footer.
"""

import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from typing import cast

import click

_ESCAPED = {"\\": r"\e", "-": r"\-", "'": r"\(aq"}
_FILES = (
    ("/opt/fedthorax", "the program with its libraries"),
    ("/var/lib/fedthorax/NAME", "a site, a clinic or a server; site.toml, clinic.toml or server.toml are its settings"),
    ("/opt/fedthorax/share/fedthorax/docs", "the documentation; `fedthorax explain docs/operations.md` shows a page"),
)


def man_page(command: click.Group, release: str, epoch: int) -> str:
    """Return the page of a command line, with each command, its arguments and its options.

    `epoch`: seconds since 1970 of the date in the page's footer, so that the same source gives the same bytes.
    """
    day = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d")
    lines = [
        f'.TH FEDTHORAX 1 "{day}" "fedthorax {release}" "User Commands"',
        ".SH NAME",
        r"fedthorax \- hospitals learn together to recognise severe Covid\-19 from chest CT and PCR",
        ".SH SYNOPSIS",
        r".B fedthorax",
        r"\fICOMMAND\fR [\fIARGUMENTS\fR]",
        ".SH DESCRIPTION",
        *_paragraphs(command.help or ""),
        ".SH COMMANDS",
        *_commands(command, "fedthorax"),
        ".SH EXIT STATUS",
        *_items((("0", "done"), ("1", "refused or failed, with a coded reason"), ("2", "wrong usage"))),
        ".SH FILES",
        *_items(_FILES),
        ".SH SEE ALSO",
        _text("`fedthorax explain CODE` explains a code, `fedthorax explain site.toml` a settings file."),
    ]
    return "\n".join(lines) + "\n"


def _commands(group: click.Group, path: str) -> Iterator[str]:
    """Yield a section for each command, those of groups after their group."""
    for name, command in group.commands.items():
        if command.hidden:
            continue
        own = f"{path} {name}"
        if isinstance(command, click.Group):
            yield f'.SS "{_text(own)}"'
            yield from _paragraphs(command.help or "")
            yield from _commands(command, own)
            continue
        arguments = [each for each in command.params if isinstance(each, click.Argument)]
        yield f'.SS "{_text(" ".join([own, *(_metavar(each) for each in arguments)]))}"'
        yield from _paragraphs(command.help or "")
        yield from _items((_metavar(each), getattr(each, "help", None) or "") for each in arguments)
        options = (each for each in command.params if isinstance(each, click.Option) and not each.hidden)
        yield from _items((_signature(each), each.help or "") for each in options)


def _metavar(argument: click.Argument) -> str:
    name = argument.metavar or (argument.name or "").upper()
    return name if argument.required else f"[{name}]"


def _signature(option: click.Option) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    return names if option.is_flag else f"{names} {(option.metavar or option.type.name).upper()}"


def _items(pairs: Iterator[tuple[str, str]] | tuple[tuple[str, str], ...]) -> Iterator[str]:
    for name, says in pairs:
        yield ".TP"
        yield f".B {_text(name)}"
        yield _text(says)


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        yield ".PP"
        yield _text(paragraph)


def _text(text: str) -> str:
    """Return text on one line that man(7) prints as it is."""
    plain = " ".join(re.sub(r"\[/?[a-z ]+\]", "", text).split()).replace("`", '"') or r"\&"
    escaped = "".join(_ESCAPED.get(letter, letter) for letter in plain)
    return f"\\&{escaped}" if escaped.startswith((".",)) else escaped


def main() -> None:
    """Print the page of the installed version."""
    import typer

    from federation.cli.main import app

    group = cast(click.Group, typer.main.get_command(app))
    sys.stdout.write(man_page(group, version("fedthorax"), int(os.environ.get("SOURCE_DATE_EPOCH", "0"))))


if __name__ == "__main__":
    main()
