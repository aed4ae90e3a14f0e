"""What the tests plant where a report must not find it, in plain and in encoded forms, and the search for it."""

import base64
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.canary.scanner import Planted, Scanner

NAME, FAMILY, GIVEN = "Bergqvist^Sylvi", "Bergqvist", "Sylvi"
IDENTIFIER, UID, BIRTH = "4401728395566", "1.2.826.0.1.3680043.8.498.7741029385566120", "19480302"
SECRET = "pwVq7tZ3xKm9"
PATH = f"/srv/pacs/{NAME}/{IDENTIFIER}/{UID}.dcm"
TEXTS = (NAME, IDENTIFIER, UID, SECRET, f"{GIVEN} {FAMILY}", f"{FAMILY}{GIVEN}")
_WORDS = (FAMILY, GIVEN, BIRTH, "1948-03-02", "02.03.1948", IDENTIFIER, UID, SECRET, "/srv/pacs")
SENTENCE = f"{NAME} born {BIRTH}, 1948-03-02, 02.03.1948, id {IDENTIFIER}, {UID}, password {SECRET}, file {PATH}"

_SCANNER = Scanner([Planted("it", TEXTS)])


def traceback_of(said: str) -> str:
    """Return what a program writes of an unexpected error with this text, in a file of a patient."""
    return (
        "2026-11-29 12:00:00,000 ERROR a scan could not be scored because of an unexpected error\n"
        "Traceback (most recent call last):\n"
        '  File "/opt/fedthorax/lib/python3.13/site-packages/pipeline/clinic/worker.py", line 100, in score\n'
        f'    raise ValueError("{said}")\n'
        f'  File "{PATH}", line {IDENTIFIER}, in {FAMILY}\n'
        f'  File "/x/pipeline/clinic/{FAMILY}.py", line 3, in read\n'
        f'  File "/x/pipeline/clinic/worker.py", line 99999, in read\n'
        f"ValueError: {said}\n"
        f"pydicom.errors.InvalidDicomError: {said}\n"
        f"{FAMILY}Error: {said}\n"
        f"2026-11-29 12:00:01,000 WARNING a series was not fetched: E_PACS_SILENT E_{FAMILY.upper()} {said}\n"
    )


def split_over_lines(text: str) -> str:
    return "\n".join(text[at : at + 5] for at in range(0, len(text), 5))


FORMS: dict[str, bytes] = {
    "plain": SENTENCE.encode(),
    "traceback": traceback_of(SENTENCE).encode(),
    "base64": base64.b64encode(SENTENCE.encode()),
    "base64 in lines": base64.encodebytes(SENTENCE.encode()),
    "UTF-16": SENTENCE.encode("utf-16"),
    "percent": quote(SENTENCE, safe="").encode(),
    "all percent": "".join(f"%{byte:02X}" for byte in SENTENCE.encode()).encode(),
    "hex": SENTENCE.encode().hex().encode(),
    "zlib": zlib.compress(SENTENCE.encode()),
    "split over lines": split_over_lines(SENTENCE).encode(),
    "reversed": SENTENCE[::-1].encode(),
    "as codes": f"E_{FAMILY.upper()}_{GIVEN.upper()} W_{FAMILY.upper()}".encode(),
    "as a place": f'File "/x/pipeline/clinic/worker.py", line {IDENTIFIER}, in {FAMILY}'.encode(),
}


def assert_nothing_planted(report: Any) -> None:
    """Assert that neither the canary's scanner nor a search for words too short for it finds anything planted.

    `report`: JSON values. They are searched as written, and as the bytes that a careless program decoded to texts.
    """
    written = json.dumps(report).encode()
    assert _SCANNER.scan(written) == []
    assert _SCANNER.scan("\n".join(_texts(report)).encode("latin-1", "replace")) == []
    assert [word for word in _WORDS if word.lower().encode() in written.lower()] == []


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        content = [*content, *content.values()]
    if isinstance(content, list):
        for each in content:
            yield from _texts(each)
    else:
        yield str(content)


def assert_planted(folder: Path) -> None:
    """Assert that the scanner does find what was planted in the files of a folder: the control of the test."""
    assert any(_SCANNER.scan(path.read_bytes()) for path in folder.rglob("*") if path.is_file())
