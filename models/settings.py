"""Loads a TOML settings file into a pydantic model, with errors that name file, key and remedy."""

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from models.reasons import SETTINGS_FILE, SETTINGS_KEY, SETTINGS_SYNTAX
from models.refusal import Refusal

Settings = TypeVar("Settings", bound=BaseModel)


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
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refusal(SETTINGS_FILE, file=path.name, private=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refusal(SETTINGS_SYNTAX, file=path.name, problem=str(error)) from error
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']) or 'the file'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        )
        raise Refusal(SETTINGS_KEY, file=path.name, problems=problems) from error
