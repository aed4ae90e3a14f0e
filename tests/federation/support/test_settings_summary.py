"""Settings are shown by their type: numbers, switches and words of the release, and nothing that a person typed."""

from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from federation.support.settings_summary import settings_summary
from tests.federation.support.planted import IDENTIFIER, NAME


class Inner(BaseModel):
    send: Literal["off", "always"] | None = None
    host: str = "127.0.0.1"


class Table(BaseModel):
    on: bool = False
    port: int = 104
    share: float = 0.5
    name: str = ""
    file: Path | None = None
    day: date | None = None
    words: list[str] = []
    options: dict[str, str] = {}
    inner: Inner = Inner()


def test_what_a_person_typed_is_only_said_to_be_set() -> None:
    table = Table(
        name=NAME,
        file=Path(NAME),
        day=date(1948, 3, 2),
        words=[NAME, NAME],
        options={NAME: NAME},
        inner=Inner(send="always", host=NAME),
    )
    assert settings_summary(table) == {
        "on": False,
        "port": 104,
        "share": 0.5,
        "name": "(set)",
        "file": "(set)",
        "day": "(set)",
        "words": "(2 set)",
        "options": "(1 set)",
        "inner": {"send": "always", "host": "(set)"},
    }


def test_defaults_are_shown() -> None:
    shown = settings_summary(Table())
    assert shown["name"] == "" and shown["file"] is None and shown["inner"] == {"send": None, "host": "127.0.0.1"}


def test_numbers_hold_no_identifier() -> None:
    shown = settings_summary(Table(port=int(IDENTIFIER), share=float(f"0.{IDENTIFIER}")))
    assert shown["port"] == "(large)" and shown["share"] == 0.4402
    assert settings_summary(Table(share=float("inf")))["share"] == "(large)"
