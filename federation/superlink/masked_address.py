"""Where the process that runs a study listens for the messages of masked rounds: SERVER_DIR/masked.json.

Only the ingress connects to it, over loopback, with the word in the file.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.system.atomic_files import write_durably

FILE = "masked.json"
SITE_HEADER, ROUND_HEADER, WORD_HEADER = "X-Fedthorax-Site", "X-Fedthorax-Round", "X-Fedthorax-Word"
STEPS = ("begin", "advertise", "share", "uploaded", "confirm", "reveal")
PATH = "/v1/secagg/"


@dataclass(frozen=True)
class MaskedAddress:
    """A port of loopback, and a secret word."""

    port: int
    word: str


def write_address(folder: Path, address: MaskedAddress) -> None:
    write_durably(folder / FILE, json.dumps(asdict(address)).encode())


def read_address(folder: Path) -> MaskedAddress | None:
    """Return the address; None if no study sums masked updates now."""
    try:
        return MaskedAddress(**json.loads((folder / FILE).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def remove_address(folder: Path) -> None:
    (folder / FILE).unlink(missing_ok=True)
