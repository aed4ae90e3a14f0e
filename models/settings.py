"""Loads a TOML settings file into a pydantic model, with errors that name file, key and remedy; edits its text."""

import codecs
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from models.reasons import SETTINGS_FILE, SETTINGS_FORM, SETTINGS_KEY, SETTINGS_SYNTAX
from models.refusal import Refusal

Settings = TypeVar("Settings", bound=BaseModel)
# A value on one line, an array only if it is of numbers, no table; and the spaces after it, which align comments.
_VALUE = r"""("(?:\\.|[^"\\])*"|'[^']*'|\[[-+0-9., ]*\]|[^\s#"'\[{]+)(\s*)"""
_HEAD = re.compile(r"\s*\[\s*([\w.-]+)\s*\]\s*(#.*)?|\[.*")  # of a table; the name is that of a simple one


def load_settings(path: Path, model: type[Settings]) -> Settings:
    """Read a TOML file into a pydantic model, such as study.toml into `Study`.

    Parameters
    ----------
    path : Path
        The TOML file.
    model : type
        The pydantic model.

    Returns
    -------
    Settings
        An instance of `model`.

    Raises
    ------
    Refusal
        E_SETTINGS_FILE, E_SETTINGS_SYNTAX or E_SETTINGS_KEY; the last names every wrong key at once.
    """
    return parse_settings(read_settings(path), model, file=path.name)


def read_settings(path: Path) -> str:
    """Return the text of a settings file. Raises Refusal: E_SETTINGS_FILE, E_SETTINGS_SYNTAX if it is not UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Refusal(SETTINGS_FILE, file=path.name, private=str(path)) from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as editors on Windows may save it
        raise Refusal(SETTINGS_SYNTAX, file=path.name, problem="its encoding is UTF-16. Save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")  # the signature is of some editors; TOML has none
    except ValueError as error:
        raise Refusal(
            SETTINGS_SYNTAX, file=path.name, problem=f"{error}. Save it as UTF-8", private=str(path)
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_settings(text: str, model: type[Settings], *, file: str) -> Settings:
    """Return the settings in a text. `file`: its name. Raises Refusal: E_SETTINGS_SYNTAX, E_SETTINGS_KEY."""
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not TOML, a number of thousands of digits
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refusal(SETTINGS_SYNTAX, file=file, problem=problem) from error
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise Refusal(SETTINGS_KEY, file=file, problems=_problems(error, content)) from error


def _problems(error: ValidationError, content: Mapping[str, Any]) -> str:
    """Say what is wrong with each key. Those that do not exist are listed together, and those of another format."""
    unknown, found = [], []
    of_format: dict[str, list[str]] = {}
    for problem in error.errors(include_url=False, include_input=False):
        place = [str(part) for part in problem["loc"]]
        is_unknown = problem["type"] == "extra_forbidden"
        if len(place) > 2 and _format_of(content, place[0]) == place[1]:  # a table of several formats
            table, kind, *rest = place
            if is_unknown:
                of_format.setdefault(f'format = "{kind}" in [{table}]', []).append(".".join(rest))
                continue
            place = [table, *rest]
        key = ".".join(place) or "the file"
        if is_unknown:
            unknown.append(key)
        else:
            found.append(f"{key}: {'it is missing' if problem['type'] == 'missing' else problem['msg']}")
    for kind, keys in of_format.items():
        found.append(f"{kind} has no such lines, remove them: {', '.join(keys)}")
    return "; ".join([*found, f"these keys do not exist: {', '.join(unknown)}"] if unknown else found)


def _format_of(content: Mapping[str, Any], table: str) -> str:
    value = content.get(table)
    return str(value.get("format", "csv")) if isinstance(value, dict) else ""


def with_value(text: str, table: str, key: str, value: str) -> str:
    """Return the text of a TOML settings file with another value of one key. Everything else stays, comments too.

    A missing key is added at the head of its table, and a missing table at the end of the text.

    Parameters
    ----------
    text : str
        The file's text, valid TOML.
    table : str
        Name of the table, such as "study" for [study].
    key : str
        Name of the key. Its old value is on one line, and is no table and no array of anything but numbers.
    value : str
        The new value as TOML, such as 'true' or '"FedAvg"'.

    Raises
    ------
    Refusal
        E_SETTINGS_FORM if the text would mean something else, as where it writes the table as `table = {...}`.
    """
    wanted = tomllib.loads(text)
    edited = _edited(text, table, key, value)
    try:
        wanted.setdefault(table, {})[key] = tomllib.loads(f"value = {value}")["value"]
        is_as_wanted = tomllib.loads(edited) == wanted
    except (ValueError, TypeError):  # not TOML; no table
        is_as_wanted = False
    if not is_as_wanted:
        raise Refusal(SETTINGS_FORM, table=table, key=key)
    return edited


def _edited(text: str, table: str, key: str, value: str) -> str:
    """Return the text with the value set, if it has the usual form."""
    lines = text.split("\n")
    heads = {place: found[1] for place, line in enumerate(lines) if (found := _HEAD.fullmatch(line))}
    head = next((place for place, name in heads.items() if name == table), None)
    if head is None:
        return f"{text.rstrip()}\n\n[{table}]\n{key} = {value}\n"
    end = next((place for place in heads if place > head), len(lines))
    for place in range(head + 1, end):
        if found := re.match(rf"(\s*{re.escape(key)}\s*=\s*){_VALUE}", lines[place]):
            before, old, spaces = found.groups()
            rest = lines[place][found.end() :]
            space = " " * max(1, len(old) + len(spaces) - len(value)) if rest else spaces
            lines[place] = f"{before}{value}{space}{rest}"
            return "\n".join(lines)
    return "\n".join([*lines[: head + 1], f"{key} = {value}", *lines[head + 1 :]])
