"""Holds templates and presets of the settings files that people edit; comments explain each line."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

# A new site does not approve these studies by default. In `baselines` and `quick` a hospital's figures and answers
# leave on their own instead of in a sum; `baselines` also evaluates models of other hospitals on a hospital's test
# patients. `demo` is for synthetic hospitals.
_ON_REQUEST = ("baselines", "demo", "quick")

# Presets that set the size of the network's input. Each can be combined with a preset of another purpose; AND joins the
# two names. Only [preprocessing] of a size is then used.
SIZES = ("small-cpu", "standard-gpu", "large-gpu")
AND = "+"


@cache
def preset_files() -> dict[str, Path]:
    """Return the files of the release's own studies by name: "study" (the defaults), the presets, "demo"."""
    folder = Path(__file__).parent
    files = [folder / "study.toml", *sorted((folder / "presets").glob("*.toml")), folder / "demo.toml"]
    return {path.stem: path for path in files}


def preprocessing_of_size(size: str) -> dict[str, Any]:
    """Return the table [preprocessing] of a size, one of SIZES."""
    table: dict[str, Any] = tomllib.loads(preset_files()[size].read_text("utf-8"))["preprocessing"]
    return table


def usual_studies() -> list[str]:
    """Return the names of the release's own studies that a new site approves in its site.toml."""
    return [name for name in preset_files() if name not in _ON_REQUEST]
