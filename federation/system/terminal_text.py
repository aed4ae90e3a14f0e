"""Text from elsewhere that is safe to show in a terminal."""

import re

# ECMA-48, Select Graphic Rendition: colours, bold and the like, as in logs that were written for a terminal.
_COLOURS = re.compile(r"\x1b\[[0-9;:]*m")


def printable(text: str, *, keep: str = "") -> str:
    """Escape characters that could move a terminal's cursor, change its colours or reverse the text's direction.

    `keep`: characters that stay as they are, such as line breaks of our own text.
    """
    safe = (c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text.expandtabs(4))
    return "".join(safe)


def without_colours(text: str) -> str:
    """Remove the colours of a log that was written for a terminal. The result is not yet `printable`."""
    return _COLOURS.sub("", text)
