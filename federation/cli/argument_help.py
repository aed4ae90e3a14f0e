"""Keep the descriptions of arguments in `--help`.

typer 0.20 sets an argument's description before it calls click's constructor, and click 8.5's constructor clears it, so
that `--help` shows arguments without a word. Remove this module when a later typer sets it afterwards;
tests/federation/cli/test_help.py then still passes.
"""

from typing import Any

from typer.core import TyperArgument

_original = TyperArgument.__init__


def _init(self: TyperArgument, *arguments: Any, help: str | None = None, **named: Any) -> None:
    _original(self, *arguments, help=help, **named)
    self.help = help


def show_argument_help() -> None:
    """Let all commands of this process show the descriptions of their arguments."""
    TyperArgument.__init__ = _init  # type: ignore[method-assign]
