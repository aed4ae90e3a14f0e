"""Text from elsewhere cannot control a terminal."""

import pytest

from federation.system.terminal_text import printable, without_colours


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[91mERROR \x1b[0m: the disk is full", "ERROR : the disk is full"),
        ("\x1b[1;38:5:9mbold\x1b[m", "bold"),
        ("\x1b[2J\x1b[H", "\\x1b[2J\\x1b[H"),
        ("\x1b[\x1b[0m2J", "\\x1b[2J"),
    ],
)
def test_colours_of_a_log_are_removed_and_other_sequences_are_escaped(text: str, shown: str) -> None:
    assert printable(without_colours(text)) == shown
