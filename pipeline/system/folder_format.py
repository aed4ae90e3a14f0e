"""The format of a whole folder: of a site, a study's server or a clinic. It covers every file without its own number.

FOLDER/format.json   {"format": 1, "software": "0.1.0"}: the format, and the version that last worked in the folder

Each start of a node, a server or a page writes it; a folder of a version before 0.1.0 has none. A release raises the
number of a kind of folder when an older release would misread one of its files.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from models.refusal import Refusal
from pipeline.system import reasons
from pipeline.system.atomic_files import write_durably
from pipeline.system.json_text import parse_json

Kind = Literal["site", "server", "clinic"]

FILE = "format.json"
FORMATS: dict[Kind, int] = {"site": 1, "server": 1, "clinic": 1}


@dataclass(frozen=True)
class Stamp:
    """What a folder says of itself. `software`: the version that last worked in it, "" if it does not say."""

    format: int
    software: str


def read_stamp(folder: Path) -> Stamp:
    """Read a folder's stamp. A folder without one has format 1, the first.

    A sandbox may not read it: what starts the sandbox has. Raises Refusal E_FORMAT_NEWER if it cannot be understood.
    """
    try:
        content = parse_json((folder / FILE).read_bytes())
        number, software = content["format"], content.get("software", "")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return Stamp(1, "")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _newer("unknown", "?", private=str(error)) from error
    if type(number) is not int or not isinstance(software, str):
        raise _newer("unknown", "?", private=str(content)[:200])
    return Stamp(number, software)


def check_folder(folder: Path, kind: Kind) -> None:
    """Refuse a folder that a newer version changed so that this one would misread it. Raises Refusal E_FORMAT_NEWER."""
    found = read_stamp(folder).format
    if found > FORMATS[kind]:
        raise _newer(str(found), str(FORMATS[kind]), private=str(folder))


def stamp_folder(folder: Path, kind: Kind) -> None:
    """Note that this version works in the folder from now on. Raises Refusal E_FORMAT_NEWER; OSError."""
    check_folder(folder, kind)
    stamp = Stamp(FORMATS[kind], version("fedthorax"))
    with suppress(Refusal):
        if (folder / FILE).exists() and read_stamp(folder) == stamp:
            return
    content = json.dumps({"format": stamp.format, "software": stamp.software}) + "\n"
    write_durably(folder / FILE, content.encode())


def _newer(found: str, known: str, *, private: str) -> Refusal:
    return Refusal(reasons.FORMAT_NEWER, file=FILE, found=found, known=known, private=private)
