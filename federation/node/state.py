"""The state of a running node, read from its logs and stored for `fedthorax node status`.

Flower's SuperNode, the study's code and the gateway each write a log at the site. A line of the SuperNode or the
gateway becomes one of a few fixed texts, or nothing. A study's code can write anything to its log. What it reports as
its work, and the codes of its refusals, are shown as its own words: quoted, in printable ASCII, short, and only a few
in a minute. A line of its log never counts as a line of the SuperNode or the gateway.
"""

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, PrivateAttr, ValidationError

from federation.enrolment.reasons import SERVER_SILENT
from federation.flower import log_lines
from federation.node.reasons import TASK_DIED
from federation.protocol.reasons import SITE_FAILED
from federation.system.refusals_page import REASONS
from models import reasons as model_reasons
from models.reason_tables import reasons_in
from models.refusal import Reason
from pipeline.site.reasons import SERVER_PROXY
from pipeline.system.atomic_files import write_atomically
from pipeline.system.codes import BY_CODE

_STATE = "node.json"
_FAILURES_BEFORE_ALARM = 2  # a single failure may be a lost packet

_MAX_WORDS = 100  # characters that are shown of a line of the study's code
_APP_LINES_A_MINUTE = 20
APP_LOG = "client.log"
_OF_APP = ": the app's own answer"  # end of the gateway's line about a refusal by the app

# Refusals by the study's code for which the remedy is shown: only those about data and models. The code must not be
# able to suggest that apps are approved, sandboxes opened or certificates renewed.
_OF_DATA = {*BY_CODE, *(reason.code for reason in (*reasons_in(model_reasons), SITE_FAILED, TASK_DIED))}


def now() -> datetime:
    """Return the local time with its zone, to the second."""
    return datetime.now().astimezone().replace(microsecond=0)


def quoted(text: str) -> str:
    """Quote the beginning of a text. Inner quotes and everything that is not printable ASCII are escaped."""
    cut = text[:_MAX_WORDS] + ("..." if len(text) > _MAX_WORDS else "")
    return json.dumps(cut).replace("\x7f", "\\u007f")


class NodeState(BaseModel, extra="ignore"):
    """The state of a node according to its logs. `contact`: the last known time of an answer from the server.

    `rounds` and `refused` (the code of the last refusal) are kept over restarts of the node.
    """

    pid: int
    started: datetime
    connection: Literal["dialling", "online", "lost", "ended"] = "dialling"
    contact: datetime | None = None
    doing: str = ""
    rounds: int = 0
    refused: str = ""
    refused_at: datetime | None = None

    _failures: int = PrivateAttr(0)
    _kind: str = PrivateAttr("")  # kind of the current task
    _answer: str = PrivateAttr("")  # "done", or the code of its refusal
    _counted: bool = PrivateAttr(False)  # whether the last reply counted as a round
    _app_minute: int = PrivateAttr(0)
    _app_lines: int = PrivateAttr(0)  # lines in that minute

    @classmethod
    def begin(cls, logs: Path) -> "NodeState":
        """Return the state of a node that this process starts now."""
        state = cls(pid=os.getpid(), started=now())
        if before := cls.load(logs):
            state.rounds, state.refused, state.refused_at = before.rounds, before.refused, before.refused_at
        return state

    @classmethod
    def load(cls, logs: Path) -> "NodeState | None":
        """Read the last stored state; None if there is none or it cannot be read."""
        with suppress(FileNotFoundError, ValidationError):
            return cls.model_validate_json((logs / _STATE).read_bytes())
        return None

    def save(self, logs: Path) -> None:
        """Store the state. Errors are ignored: a full disk must not stop the node."""
        with suppress(OSError):
            write_atomically(logs / _STATE, self.model_dump_json(indent=1).encode())

    def read(self, line: str, log: str) -> str | None:
        """Process one line of the log of that name; return the text for the operator, if any."""
        for pattern, react in RULES[log]:
            if found := pattern.search(line):
                text = react(self, found)
                return self._few(text) if text and log == APP_LOG else text
        return None

    def _few(self, text: str) -> str | None:
        """Return the text, or None if the study's code has reached its limit for this minute."""
        minute = int(time.monotonic() // 60)
        if minute != self._app_minute:
            self._app_minute, self._app_lines = minute, 0
        self._app_lines += 1
        if self._app_lines == _APP_LINES_A_MINUTE:
            return f"the app writes too much; the rest of this minute is only in logs/{APP_LOG}"
        return text if self._app_lines < _APP_LINES_A_MINUTE else None

    def touch(self) -> None:
        """Note that all log lines are read: a node that is online and idle polls every 3 s and logs failures."""
        if self.connection == "online" and not self.doing:
            self.contact = now()

    def _online(self, _: re.Match[str]) -> str:
        self._failures, self.connection, self.contact = 0, "online", now()
        return "the node is online: the study's server has accepted it"

    def _failed(self, _: re.Match[str]) -> str | None:
        self._failures += 1
        if self.connection == "ended" or self._failures != _FAILURES_BEFORE_ALARM:
            return None
        if self.connection == "dialling":
            return f"no answer yet ({SERVER_SILENT.code}); the node keeps trying. {SERVER_SILENT.remedy}"
        self.connection = "lost"
        return "connection lost; the node tries again until the server responds"

    def _proxy_refuses(self, _: re.Match[str]) -> str:
        return f"the proxy refuses the connection ({SERVER_PROXY.code}); the node keeps trying. {SERVER_PROXY.remedy}"

    def _connected_again(self, found: re.Match[str]) -> str | None:
        self._failures, self.contact = 0, now()
        if self.connection != "lost":
            return None
        self.connection = "online"
        return f"connected again after {float(found[1]):.0f} s"

    def _task(self, found: re.Match[str]) -> str:
        self.contact, self.doing, self._kind = now(), "fetching a task", found[1]
        self._counted = False
        return f"task received: {self._kind}"

    def _working(self, found: re.Match[str]) -> str:
        self.doing = f"the app says: {quoted(found[1])}"
        return self.doing

    def _done(self, _: re.Match[str]) -> None:
        self._answer = "done"

    def _app_refused(self, found: re.Match[str]) -> str:
        reason = REASONS.get(found[1] or "", SITE_FAILED)
        self._refuse(reason)
        what = reason.remedy if reason.code in _OF_DATA else f"`fedthorax explain {reason.code}` says more."
        return f"the app says that it refused the task ({reason.code}); if this is true: {what}"

    def _raised(self, _: re.Match[str]) -> str:
        return self._refuse(SITE_FAILED)

    def _refuse(self, reason: Reason) -> str:
        self.refused, self.refused_at, self._answer = reason.code, now(), reason.code
        return f"refused ({reason.code}): {reason.remedy}"

    def _sent(self, _: re.Match[str]) -> str:
        self.contact, self.doing = now(), ""
        answer, self._answer = self._answer, ""
        if answer == "done":
            self._counted = self._kind == "train"
            self.rounds += self._counted
            return "reply sent"
        return "only the code was sent to the server" if answer else self._refuse(TASK_DIED)

    def _held_back(self, found: re.Match[str]) -> str:
        """The gateway refused a task before the node saw it, or a reply that the node regards as sent."""
        reason = REASONS.get(found[2], SITE_FAILED)
        says = self._refuse(reason)
        if found[0].endswith(_OF_APP):
            says = f"the app itself answered with a refusal ({reason.code})"
        if self._counted:
            self.rounds, self._counted, self._answer = self.rounds - 1, False, ""
        return says

    def _dropped(self, _: re.Match[str]) -> str:
        self.doing = ""
        return "the run was stopped at the server, or the gateway refused the task; the task is dropped"

    def _not_passed(self, found: re.Match[str]) -> str:
        self.doing = ""
        what = "the task could not be fetched" if found[1] == "receive" else "the reply could not be sent"
        return f"{what}; the round continues without this site"

    def _ended(self, _: re.Match[str]) -> None:
        self.connection, self.doing = "ended", ""


# Lines of Flower, then of the logs of our app and of the gateway, which begin with the time.
_Rules = Sequence[tuple[re.Pattern[str], Callable[[NodeState, re.Match[str]], str | None]]]
# By the name of the log.
RULES: dict[str, _Rules] = {
    name: [(re.compile(pattern, re.ASCII), react) for pattern, react in rules]
    for name, rules in {
        "node.log": (
            (log_lines.ONLINE, NodeState._online),
            (log_lines.CONNECTION_FAILED, NodeState._failed),
            (log_lines.CONNECTED_AGAIN, NodeState._connected_again),
            (log_lines.RECEIVING, NodeState._task),
            (log_lines.SENT, NodeState._sent),
            (log_lines.NOT_RUNNING, NodeState._dropped),
            (log_lines.NOT_PASSED, NodeState._not_passed),
            (log_lines.RAISED, NodeState._raised),
            (log_lines.ENDED, NodeState._ended),
        ),
        APP_LOG: (
            (r"^\d{4}-\S+ \S+ INFO task: (.+)$", NodeState._working),
            (r"^\d{4}-\S+ \S+ INFO done$", NodeState._done),
            (r"^\d{4}-\S+ \S+ ERROR (E_\w+)?", NodeState._app_refused),
        ),
        "gateway.log": (
            (r"^\d{4}-\S+ \S+ WARNING refused (in|out): (E_\w+).*", NodeState._held_back),
            (rf"^\d{{4}}-\S+ \S+ WARNING {SERVER_PROXY.code}: ", NodeState._proxy_refuses),
        ),
    }.items()
}
