"""The files that people edit, as templates and presets; each is documented line by line."""

from functools import cache
from pathlib import Path


@cache
def preset_files() -> dict[str, Path]:
    """The files of the release's own studies by name: "study" (the defaults), the presets, "demo"."""
    folder = Path(__file__).parent
    files = [folder / "study.toml", *sorted((folder / "presets").glob("*.toml")), folder / "demo.toml"]
    return {path.stem: path for path in files}
