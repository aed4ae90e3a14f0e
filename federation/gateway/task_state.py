"""The states of the gateway's one current task, and all transitions between them.

Idle ─check→ Checking ─offer→ AtNode ─receive→ Replying ─answer→ Answering ─end→ Idle

A task can be answered from each of Checking, AtNode and Replying: a refusal or an error is an answer, too. AtNode is
entered again if the node receives its task again, Replying if it announces another reply. If the node restarts, its
partial reply is discarded: Replying → AtNode.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from federation.gateway.reply_intake import Reception
from federation.gateway.task_intake import Task


@dataclass(frozen=True)
class Idle:
    """There is no task. `answered`: when the last one was answered, by the event loop's clock."""

    answered: float = -math.inf


@dataclass(frozen=True)
class Checking:
    """The task is fetched and checked. The result of `checks`: whether the node may have the task."""

    task: Task
    checks: asyncio.Task[bool]


@dataclass(frozen=True)
class AtNode:
    """The node may fetch the task and work on it."""

    task: Task


@dataclass(frozen=True)
class Replying:
    """The node has announced a reply, and sends its objects."""

    task: Task
    reply: Reception


@dataclass(frozen=True)
class Answering:
    """The answer is composed and delivered. `reply`: the node's reply, if it had announced one."""

    task: Task
    reply: Reception | None
    delivery: asyncio.Task[None]


State = Idle | Checking | AtNode | Replying | Answering


class CurrentTask:
    """Holds the state; only these methods change it."""

    def __init__(self) -> None:
        self.state: State = Idle()

    def check(self, task: Task, checks: Coroutine[Any, Any, bool]) -> Checking:
        """Begin the checks of a new task."""
        checking = Checking(task, asyncio.create_task(checks))
        self.state = checking
        return checking

    def offer(self, task: Task) -> None:
        """Let the node have the task, for the first time or again."""
        self.state = AtNode(task)

    def receive(self, task: Task, reply: Reception) -> None:
        """Take `reply` as the node's reply, in place of an earlier one."""
        self.state = Replying(task, reply)

    def discard_reply(self) -> bool:
        """Discard a partial reply; return whether there was one. A reply that is being answered is kept."""
        if not isinstance(self.state, Replying):
            return False
        self.state = AtNode(self.state.task)
        return True

    def answer(self, task: Task, deliver: Callable[[Reception | None], Coroutine[Any, Any, None]]) -> None:
        """Begin to answer the task. Only the first answer to a task counts; later ones are ignored.

        `deliver` is called with the node's reply, if it has announced one.
        """
        state = self.state
        if isinstance(state, Idle | Answering) or state.task is not task:
            return
        reply = state.reply if isinstance(state, Replying) else None
        self.state = Answering(task, reply, asyncio.create_task(deliver(reply)))

    def end(self) -> None:
        """The answer was delivered, or dropped."""
        self.state = Idle(answered=asyncio.get_running_loop().time())
