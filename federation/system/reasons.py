"""Reasons why a process could not be started."""

from models.refusal import Reason

NOT_STARTED = Reason(
    "E_NOT_STARTED",
    "{process} did not come up; the end of its log {log} says why",
    "Read the log, remove the cause and start it again.",
)
