"""Holds templates and presets of the settings files that people edit; comments explain each line."""

from functools import cache
from pathlib import Path

# A new site does not approve these studies by default. In `baselines` and `quick` a hospital's figures and answers
# leave on their own instead of in a sum; `baselines` also evaluates models of other hospitals on a hospital's test
# patients. `demo` is for synthetic hospitals.
_ON_REQUEST = ("baselines", "demo", "quick")


@cache
def preset_files() -> dict[str, Path]:
    """Return the files of the release's own studies by name: "study" (the defaults), the presets, "demo"."""
    folder = Path(__file__).parent
    files = [folder / "study.toml", *sorted((folder / "presets").glob("*.toml")), folder / "demo.toml"]
    return {path.stem: path for path in files}


def usual_studies() -> list[str]:
    """Return the names of the release's own studies that a new site approves in its site.toml."""
    return [name for name in preset_files() if name not in _ON_REQUEST]
