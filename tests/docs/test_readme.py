"""The README stays short, and what it links to exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text()
MAX_WORDS = 900


def test_it_is_short() -> None:
    assert len(TEXT.split()) <= MAX_WORDS


def test_its_links_and_pictures_exist() -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT)
    assert len(targets) > 20
    assert [target for target in targets if ":" not in target and not (ROOT / target).exists()] == []
