"""Tests of JSON that somebody else wrote."""

import gc
from contextlib import suppress

import pytest

from pipeline.system.json_text import parse_json


@pytest.mark.parametrize(
    ("content", "parsed"),
    [
        (b'{"a": [1, 2.5, null, true, "\xc3\xa9"]}', {"a": [1, 2.5, None, True, "é"]}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        ('{"a": "é"}', {"a": "é"}),
        (b"[" * 3 + b"]" * 3, [[[]]]),
    ],
    ids=["bytes", "byte order mark", "text", "nested"],
)
def test_document_is_parsed(content: str | bytes, parsed: object) -> None:
    assert parse_json(content) == parsed


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"{}x", b"\xff", b"NaN", b"[Infinity]", b'"\\ud800"', b"1" * 5000, b"'a'", b"[1,]"),
        *(b"[" * 100_000, b'{"a":' * 100_000, b"[" * 1000 + b"]" * 1000),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_anything_else_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match="line 1 column"):
        parse_json(content)


def test_deep_nesting_does_not_disturb_what_is_finalized_meanwhile() -> None:
    """`json.loads` collects garbage at Python's recursion limit, where a `__del__` fails."""

    class Left:
        finalized = 0

        def __init__(self) -> None:
            self.own = self  # a cycle: only the garbage collector frees it

        def __del__(self) -> None:
            def add() -> None:
                Left.finalized += 1

            add()

    before = gc.get_threshold()
    try:
        for after in range(1, 1001):  # one of these collections comes at the deepest list
            gc.collect(0)
            gc.set_threshold(after)
            Left()
            with suppress(ValueError):
                parse_json(b"[" * 2000)
    finally:
        gc.set_threshold(*before)
        gc.collect()
    assert Left.finalized == 1000
