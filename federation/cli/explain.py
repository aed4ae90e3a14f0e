"""`fedthorax explain`: what a code means, and what a settings file may contain, without the documentation at hand."""

import difflib
from pathlib import Path
from typing import Annotated

import typer

TEMPLATES = ("site.toml", "study.toml", "clinic.toml")


def explain(
    what: Annotated[
        str, typer.Argument(help="A code such as E_CLOCK; or a settings file: site.toml, study.toml, clinic.toml.")
    ],
) -> None:
    """Explain a code and what to do about it, or show the template of a settings file with all its keys."""
    import configs
    from federation.system.refusals_page import REASONS

    if what in TEMPLATES:
        typer.echo(Path(configs.__file__).with_name(what).read_text(encoding="utf-8"), nl=False)
        return
    code = what.strip(" :.,").upper()
    reason = REASONS.get(code)
    if reason is None:
        near = difflib.get_close_matches(code, REASONS, n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise typer.BadParameter(f"no code has this name.{hint}")
    typer.echo(f"{reason.code}: {reason.says}")
    typer.echo(f"  {reason.remedy}")
