"""Collects all reasons of a package; each of its rooms has its own table, the module `reasons`.

The tables are found by name instead of by import, because a room may import only the rooms below it. They contain only
constants and import only `models.refusal`.
"""

import functools
import pkgutil
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from models.refusal import Reason


@functools.cache
def tables(package: str) -> dict[str, ModuleType]:
    """Return the tables of a package's rooms, by the room's name."""
    rooms = [module.name for module in pkgutil.iter_modules(import_module(package).__path__) if module.ispkg]
    names = {room: f"{package}.{room}.reasons" for room in rooms}
    return {room: import_module(name) for room, name in names.items() if find_spec(name)}


def reasons_in(*modules: ModuleType) -> list[Reason]:
    """Return the reasons that modules define, sorted by code."""
    found = {value.code: value for module in modules for value in vars(module).values() if isinstance(value, Reason)}
    return [found[code] for code in sorted(found)]
