"""Text from elsewhere cannot control a terminal."""

import pytest

from federation.system.terminal_text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 漢", "plain ü 漢"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\u202eb", "a\\u202eb"),
        ("a\u200bb", "a\\u200bb"),
        ("a\x9bb\x07", "a\\x9bb\\x07"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\tx", "    x"),
        ("\U000e0041", "\\U000e0041"),
        ("\ud800", "\\ud800"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_kept_characters_stay_as_they_are() -> None:
    assert printable("one\n\x1btwo\r", keep="\n") == "one\n\\x1btwo\\r"
