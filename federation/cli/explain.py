"""`fedthorax explain`: what a code means, what a settings file may contain, and the pages that remedies name."""

import difflib
import sysconfig
from pathlib import Path
from typing import Annotated

import typer

TEMPLATES = ("site.toml", "study.toml", "clinic.toml")


def explain(
    what: Annotated[
        str,
        typer.Argument(
            help="A code such as E_CLOCK; a settings file (site.toml, study.toml, clinic.toml); or a page of the "
            "documentation such as docs/operations.md."
        ),
    ],
) -> None:
    """Explain a code and what to do about it, or show a settings file with all its keys, or a page of the docs."""
    import configs
    from federation.system.refusals_page import REASONS

    if what in TEMPLATES:
        typer.echo(Path(configs.__file__).with_name(what).read_text(encoding="utf-8"), nl=False)
        return
    if (page := what.strip(" .,").removeprefix("docs/")).endswith(".md"):
        typer.echo(_page(page).read_text(encoding="utf-8"), nl=False)
        return
    code = what.strip(" :.,").upper()
    reason = REASONS.get(code)
    if reason is None:
        near = difflib.get_close_matches(code, REASONS, n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise typer.BadParameter(f"no code has this name.{hint}")
    typer.echo(f"{reason.code}: {reason.says}")
    typer.echo(f"  {reason.remedy}")


def _page(name: str) -> Path:
    """Return a page of the documentation: of the source, if this runs from it, else of the installation."""
    source = Path(__file__).parents[2]
    is_source = (source / "pyproject.toml").is_file()
    folder = source / "docs" if is_source else Path(sysconfig.get_path("data")) / "share" / "fedthorax" / "docs"
    pages = {path.name: path for path in folder.glob("*.md")}
    if name not in pages:
        raise typer.BadParameter(f"there is no such page in {folder}; there are: {', '.join(sorted(pages))}")
    return pages[name]
