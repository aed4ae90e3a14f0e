"""Reasons for which the ledger cannot be written or trusted."""

from models.refusal import Reason

LEDGER_WRITE = Reason(
    "E_LEDGER_WRITE",
    "the ledger could not be written, and nothing is done that it does not record",
    "Free space on the disk, or give the node's user access to the folder SITE_DIR/ledger.",
)
LEDGER_BROKEN = Reason(
    "E_LEDGER_BROKEN",
    "line {line} of the ledger is not as it was written: this line, or one before it, was changed, removed or inserted",
    "Find out who changed it. Keep the file as evidence. To continue, move it away or restore its backup.",
)
LEDGER_TORN = Reason(
    "W_LEDGER_TORN",
    "the ledger's last line was incomplete, as after a power failure; it was moved to another file",
    "Compare ledger.torn in SITE_DIR/ledger with the time of the power failure. Without one, somebody cut the file.",
)
LEDGER_INCOMPLETE = Reason(
    "E_LEDGER_INCOMPLETE",
    "the ledger's last line is incomplete, as after a power failure",
    "Start the node: it moves the line to another file and records this. Then verify again.",
)
LEDGER_CUT = Reason(
    "E_LEDGER_CUT",
    "the ledger's line {line} is not the one that the server knows: the end was cut, or the whole ledger was rewritten",
    "Restore the ledger's newest backup. If there is none, tell the study's office: it can accept the cut for this run "
    "with `fedthorax study accept-ledger`. Without that, the site takes part in the next run.",
)
LEDGER_RECORD = Reason(
    "E_LEDGER_RECORD",
    "the record is not a run's history.json, or contains no head of this site's ledger",
    "Ask the study's coordinator for the history.json of a run in which this site took part.",
)
RESTORED = Reason(
    "E_RESTORED",
    "this site was restored from a backup, and takes part in nothing until the hospital accepts this",
    "Read 'After a restore' in docs/operations.md, then run `fedthorax node accept-restore SITE_DIR --note REASON`.",
)
NOT_RESTORED = Reason(
    "E_NOT_RESTORED",
    "this site was not restored from a backup, or the hospital has accepted it already",
    "No action is needed.",
)
RESTORE_NOTE = Reason(
    "E_RESTORE_NOTE",
    "the note is empty, longer than {most} characters, or has characters that cannot be printed",
    "State in one line who decided, and why. It becomes part of a record: name no patient.",
)
