"""Collects all reasons of a package; each of its rooms has its own table, the module `reasons`.

A long table is split: a part of it is in a module whose name ends in `_reasons`.

The tables are found by name instead of by import, because a room may import only the rooms below it. They contain only
constants and import only `models.refusal`.
"""

import functools
import pkgutil
from importlib import import_module
from types import ModuleType

from models.refusal import Reason


@functools.cache
def tables(package: str) -> dict[str, ModuleType]:
    """Return the tables of a package's rooms, by the room's name; a part of a split table by room and module."""
    found: dict[str, ModuleType] = {}
    for room in pkgutil.iter_modules(import_module(package).__path__):
        if not room.ispkg:
            continue
        path = f"{package}.{room.name}"
        for module in pkgutil.iter_modules(import_module(path).__path__):
            if module.name == "reasons":
                found[room.name] = import_module(f"{path}.reasons")
            elif module.name.endswith("_reasons"):
                found[f"{room.name}.{module.name}"] = import_module(f"{path}.{module.name}")
    return found


def reasons_in(*modules: ModuleType) -> list[Reason]:
    """Return the reasons that modules define, sorted by code."""
    found = {value.code: value for module in modules for value in vars(module).values() if isinstance(value, Reason)}
    return [found[code] for code in sorted(found)]
