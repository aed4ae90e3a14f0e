"""The README is short, and its links and pictures exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text()
MAX_WORDS = 900


def test_readme_is_short() -> None:
    assert len(TEXT.split()) <= MAX_WORDS


def test_links_and_pictures_of_readme_exist() -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT)
    assert len(targets) > 20
    assert [target for target in targets if ":" not in target and not (ROOT / target).exists()] == []
