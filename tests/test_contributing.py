"""All files and code names that CONTRIBUTING.md mentions exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
QUOTED = sorted(set(re.findall(r"`([^`\s]+)`", TEXT)))
FOLDERS = ("models", "pipeline", "federation", "configs", "benchmarks", "tests")
CODE = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]


def test_mentioned_paths_exist() -> None:
    paths = [name for name in QUOTED if "/" in name and "NAME" not in name and not name.startswith(".venv")]
    assert len(paths) > 30
    assert [name for name in paths if not (ROOT / name).exists()] == []


def test_files_mentioned_without_folder_exist() -> None:
    here = {path.name for path in [*CODE, *(ROOT / "configs").rglob("*.toml"), *ROOT.glob("*.toml")]}
    files = [name for name in QUOTED if re.fullmatch(r"\w+\.(py|toml)", name) and "NAME" not in name]
    assert len(files) > 10
    assert [name for name in files if name not in here] == []


def test_mentioned_code_names_exist() -> None:
    code = "\n".join(path.read_text() for path in CODE)
    names = [name for name in QUOTED if re.fullmatch(r"\w*(_|[A-Z])\w*", name) and "NAME" not in name and name != "E_"]
    assert len(names) > 40
    assert [name for name in names if not re.search(rf"\b{name}\b", code)] == []
