"""The help of every command, and completion in a shell."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from click import Command, Context, Parameter

from federation.cli.main import app

FEDTHORAX = Path(sys.executable).with_name("fedthorax")


def commands(command: Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Command]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield words, command
        return
    for name, each in below.items():
        yield from commands(each, (*words, name))


def description(parameter: Parameter, command: Command) -> str:
    record = parameter.get_help_record(Context(command))
    return record[1].replace("\\", "").partition("[required]")[0].partition("[default")[0].strip() if record else ""


def test_every_argument_and_option_has_a_description() -> None:
    found = dict(commands(typer.main.get_command(app)))
    assert len(found) > 50
    missing = [
        (*words, parameter.name)
        for words, command in found.items()
        for parameter in command.params
        if not description(parameter, command)
    ]
    assert missing == []


def test_no_word_of_the_help_is_taken_for_a_style() -> None:
    """The terminal's colours are written as words in brackets, and would be left out."""
    found = dict(commands(typer.main.get_command(app)))
    texts = [(words, command.help or "") for words, command in found.items()]
    texts += [(words, getattr(each, "help", "") or "") for words, command in found.items() for each in command.params]
    assert [(words, text) for words, text in texts if re.search(r"(?<!\\)\[[a-z/]", text)] == []


@pytest.mark.slow
def test_shell_completes_commands() -> None:
    environment = os.environ | {
        "_FEDTHORAX_COMPLETE": "complete_bash",
        "COMP_WORDS": "fedthorax node back",
        "COMP_CWORD": "2",
    }
    done = subprocess.run([FEDTHORAX], env=environment, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["backup"]
