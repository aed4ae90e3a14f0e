"""Reasons for which a process could not be started."""

from models.refusal import Reason

NOT_STARTED = Reason(
    "E_NOT_STARTED",
    "{process} did not start; the end of its log {log} shows the cause",
    "Read the log, remove the cause and start it again.",
)
