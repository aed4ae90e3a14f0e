"""Texts out of scans' headers, made inert: whatever shows them shows letters, in the order in which they stand."""

import unicodedata
from typing import Any

# Of format and control characters: those by which a text can hide, break a line or turn around what stands beside it.
_HARMFUL = ("Cc", "Cf", "Cs", "Zl", "Zp")


def inert(content: Any) -> Any:
    """The same JSON without control and format characters (Unicode Cc, Cf, Cs), which among others set the direction.

    Nothing else is changed: markup stays as it was written, for whoever shows it to show as text. Letters of scripts
    that need a joiner between them (zero-width, Cf) may look a little different.
    """
    if isinstance(content, str):
        return "".join(letter for letter in content if unicodedata.category(letter) not in _HARMFUL)
    if isinstance(content, dict):
        return {key: inert(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [inert(each) for each in content]
    return content
