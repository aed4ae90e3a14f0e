"""The settings of a node, a server or a clinic without anything that a person has typed.

The type of a setting decides. A number, a switch or a word of a fixed list is shown. Of a text, a path or a date, such
as a host, an AE title, a token file or a person, only whether it is set; of a list, how long it is. Comments are not
read. So a new setting needs no rule of its own.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from federation.support.sections import bounded, listed_words

_SET = "(set)"


def settings_summary(settings: BaseModel) -> dict[str, Any]:
    """Return all settings by name, as JSON values."""
    return {name: _shown(getattr(settings, name), field) for name, field in type(settings).model_fields.items()}


def _shown(value: Any, field: FieldInfo) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return bounded(value)
    if isinstance(value, BaseModel):
        return settings_summary(value)
    if isinstance(value, str | Path):
        is_of_release = value == field.default or value in listed_words(field.annotation)
        return str(value) if is_of_release else _SET
    return f"({len(value)} set)" if isinstance(value, Collection) else _SET
