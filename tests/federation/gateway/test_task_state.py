"""The states of the gateway's current task: their transitions, and that a task is answered only once."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree

from federation.gateway.reply_intake import Reception
from federation.gateway.task_intake import Task
from federation.gateway.task_state import Answering, AtNode, Checking, CurrentTask, Idle, Replying

REPLY = cast(Reception, "the node's reply")


def a_task() -> Task:
    return Task(ProtoMessage(), ObjectTree())


async def passed() -> bool:
    return True


class Answer:
    """An answer that completes when `delivered` is set. `given`: the node's reply, one entry for each answer."""

    def __init__(self) -> None:
        self.given: list[Reception | None] = []
        self.delivered = asyncio.Event()

    def __call__(self, reply: Reception | None) -> Coroutine[Any, Any, None]:
        self.given.append(reply)
        return cast(Coroutine[Any, Any, None], self.delivered.wait())


def checking(current: CurrentTask, task: Task) -> None:
    current.check(task, passed())


def at_node(current: CurrentTask, task: Task) -> None:
    checking(current, task)
    current.offer(task)


def replying(current: CurrentTask, task: Task) -> None:
    at_node(current, task)
    current.receive(task, REPLY)


def test_task_goes_through_all_states() -> None:
    async def play() -> None:
        current, task, answer = CurrentTask(), a_task(), Answer()
        assert current.state == Idle()
        begun = current.check(task, passed())
        assert current.state is begun and await begun.checks
        current.offer(task)
        assert current.state == AtNode(task)
        current.receive(task, REPLY)
        assert current.state == Replying(task, REPLY)
        current.answer(task, answer)
        assert isinstance(current.state, Answering)
        assert (current.state.task, current.state.reply) == (task, REPLY)
        answer.delivered.set()
        await current.state.delivery
        current.end()
        assert isinstance(current.state, Idle)
        assert current.state.answered <= asyncio.get_running_loop().time()

    asyncio.run(play())


@pytest.mark.parametrize(("enter", "given"), [(checking, None), (at_node, None), (replying, REPLY)])
def test_task_is_answered_once_from_each_state(
    enter: Callable[[CurrentTask, Task], None], given: Reception | None
) -> None:
    async def play() -> None:
        current, task, answer = CurrentTask(), a_task(), Answer()
        enter(current, task)
        current.answer(task, answer)
        answering = current.state
        current.answer(task, answer)
        assert current.state is answering
        assert answer.given == [given]
        answer.delivered.set()

    asyncio.run(play())


def test_answer_to_a_task_that_is_not_current_is_ignored() -> None:
    async def play() -> None:
        current, earlier, task, answer = CurrentTask(), a_task(), a_task(), Answer()
        current.answer(earlier, answer)
        assert current.state == Idle()
        at_node(current, task)
        current.answer(earlier, answer)
        assert current.state == AtNode(task)
        assert answer.given == []

    asyncio.run(play())


def test_only_a_partial_reply_is_discarded() -> None:
    async def play() -> None:
        current, task, answer = CurrentTask(), a_task(), Answer()
        assert not current.discard_reply()
        checking(current, task)
        assert not current.discard_reply()
        assert isinstance(current.state, Checking)
        replying(current, task)
        assert current.discard_reply()
        assert current.state == AtNode(task)
        replying(current, task)
        current.answer(task, answer)
        assert not current.discard_reply()
        assert isinstance(current.state, Answering) and current.state.reply is REPLY
        answer.delivered.set()

    asyncio.run(play())
