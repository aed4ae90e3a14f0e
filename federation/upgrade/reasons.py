"""Reasons for which an upgrade cannot be undone now."""

from models.refusal import Reason

STILL_RUNNING = Reason(
    "E_STILL_RUNNING",
    "the {what} still runs, so its files cannot be exchanged",
    "Stop it first, then repeat the command. Nothing was changed.",
)
