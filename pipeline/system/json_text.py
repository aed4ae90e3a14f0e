"""Parsing of JSON that somebody else wrote: a server, a PACS, an identity provider, a file that was brought here."""

import codecs
from typing import Any

from pydantic_core import from_json


def parse_json(content: str | bytes) -> Any:
    """Parse one JSON document in UTF-8, with or without a byte order mark. Raises ValueError for anything else.

    The parser refuses more than 200 lists or objects inside each other, and NaN. `json.loads` would go on to Python's
    recursion limit: whatever the garbage collector finalizes there fails, also what is not part of the document.
    """
    if isinstance(content, bytes):
        content = content.removeprefix(codecs.BOM_UTF8)
    return from_json(content, allow_inf_nan=False)
