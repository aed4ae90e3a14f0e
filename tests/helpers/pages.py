"""The settings that a page of the documentation gives, for tests that use them as printed."""

from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def settings_under(heading: str, *, page: str) -> str:
    """Return the first block of TOML under a heading of a page."""
    section = (DOCS / page).read_text(encoding="utf-8").split(f"# {heading}\n")[1]
    return section.split("```toml\n")[1].split("```")[0]
