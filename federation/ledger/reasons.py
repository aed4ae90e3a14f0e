"""Reasons why the ledger cannot be written or trusted."""

from models.refusal import Reason

LEDGER_WRITE = Reason(
    "E_LEDGER_WRITE",
    "the ledger could not be written, and what it does not record is not done",
    "Free space on the disk, or give the user who runs the node the folder SITE_DIR/ledger.",
)
LEDGER_BROKEN = Reason(
    "E_LEDGER_BROKEN",
    "line {line} of the ledger is not as it was written: it, or a line before it, was changed, removed or put in",
    "Find out who changed it. Keep the file as evidence, and move it away (or bring back its backup) to go on.",
)
LEDGER_TORN = Reason(
    "W_LEDGER_TORN",
    "the ledger's last line was incomplete, as a power cut leaves it; it was set aside",
    "Compare ledger.torn in SITE_DIR/ledger with the time of the power cut; without one, somebody cut the file.",
)
LEDGER_INCOMPLETE = Reason(
    "E_LEDGER_INCOMPLETE",
    "the ledger's last line is incomplete, as a power cut leaves it",
    "Start the node: it sets the line aside and writes down that it did. Then verify again.",
)
LEDGER_CUT = Reason(
    "E_LEDGER_CUT",
    "the ledger lacks its line {line} as the server was told of it: its end was cut, or all of it was written anew",
    "Bring back the ledger's backup. If there is none, tell the study's coordinator before the node takes part again.",
)
LEDGER_RECORD = Reason(
    "E_LEDGER_RECORD",
    "the record is not a run's history.json, or names no head of this site's ledger",
    "Ask the study's coordinator for the history.json of a run in which this site took part.",
)
