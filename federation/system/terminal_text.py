"""Text from elsewhere that is safe to show in a terminal."""


def printable(text: str, *, keep: str = "") -> str:
    """Escape characters that could move a terminal's cursor, change its colours or reverse the text's direction.

    `keep`: characters that stay as they are, such as line breaks of our own text.
    """
    safe = (c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text.expandtabs(4))
    return "".join(safe)
