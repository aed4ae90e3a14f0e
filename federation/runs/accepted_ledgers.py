"""Accept that a site's ledger was cut, as after a restore from a backup, so that the site can go on with a run.

RUN/accepted_ledgers.json   what the office accepted; the run adds each entry to its history when it is resumed

The entry sets the site's last known ledger head back to none: the server no longer asks the site for it. The lines that
were cut stay named in the history, with the office's reason.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from federation.ledger.restored import checked_note
from federation.protocol.reply_validation import NO_HEAD, LedgerHead
from federation.runs import reasons
from federation.runs.run_folder import find_run, read_history
from federation.runs.submission import UNDER_WAY, state
from models.refusal import Refusal
from pipeline.system.atomic_files import write_durably

STEP = "ledger accepted"
Entry = Mapping[str, Any]


def accept_ledger(server: Path, run: str, site: str, note: str) -> LedgerHead:
    """Accept that the ledger of `site` lacks the head that `run` knows; return this head.

    Raises Refusal: E_RUN_UNKNOWN, E_RUN_UNDER_WAY, E_RUN_FILES, E_RESTORE_NOTE, E_LEDGER_UNKNOWN.
    """
    folder = find_run(server, run)
    if state(server, folder) in UNDER_WAY:
        raise Refusal(reasons.RUN_UNDER_WAY)
    why, accepted = checked_note(note), _read(folder)
    cut = last_heads([*read_history(folder), *accepted]).get(site, NO_HEAD)
    if cut == NO_HEAD:
        raise Refusal(reasons.LEDGER_UNKNOWN)
    entry = {
        "step": STEP,
        "sites": [site],
        "refused": {},
        "ledger": {site: {"head": NO_HEAD.head, "lines": NO_HEAD.lines}},
        "cut": {"head": cut.head, "lines": cut.lines},
        "note": why,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_durably(folder / "accepted_ledgers.json", json.dumps([*accepted, entry], indent=1).encode())
    return cut


def newly_accepted(folder: Path, history: Iterable[Entry]) -> list[Entry]:
    """Return the accepted entries for `history`: those whose cut head is still the site's last. Raises as `_read`."""
    found, known = [], list(history)
    for entry in _read(folder):
        (site,) = entry["sites"]
        if last_heads(known).get(site) == LedgerHead(**entry["cut"]):
            known.append(entry)
            found.append(entry)
    return found


def last_heads(history: Iterable[Entry]) -> dict[str, LedgerHead]:
    """Return the last ledger head of each site, by name."""
    last: dict[str, Any] = {}
    for entry in history:
        last |= entry.get("ledger", {})
    return {site: LedgerHead(**head) for site, head in last.items()}


def _read(folder: Path) -> list[Entry]:
    """Raises Refusal E_RUN_FILES."""
    file = folder / "accepted_ledgers.json"
    try:
        return list(json.loads(file.read_bytes()))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise Refusal(reasons.RUN_FILES, file=file.name, private=f"{folder}: {error}") from error
