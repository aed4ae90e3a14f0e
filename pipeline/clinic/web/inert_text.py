"""Texts from scans' headers without control characters, so that they are displayed exactly as written."""

import unicodedata
from typing import Any

# Control and format characters: they can hide text, break lines or reverse the text beside them.
_HARMFUL = ("Cc", "Cf", "Cs", "Zl", "Zp")


def inert(content: Any) -> Any:
    """Remove control and format characters (Unicode Cc, Cf, Cs), such as direction marks, from all texts in JSON.

    Nothing else changes: markup is kept, and the reader must display it as text. Scripts that need zero-width joiners
    (Cf) may look slightly different.
    """
    if isinstance(content, str):
        return "".join(letter for letter in content if unicodedata.category(letter) not in _HARMFUL)
    if isinstance(content, dict):
        return {key: inert(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [inert(each) for each in content]
    return content
