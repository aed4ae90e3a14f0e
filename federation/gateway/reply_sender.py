"""Send an answer to the server, and repeat until it arrives or the task has expired."""

import asyncio
import time
from collections.abc import Callable

from federation.flower.messages import (
    Node,
    PushMessagesRequest,
    PushMessagesResponse,
    PushObjectRequest,
    PushObjectResponse,
    iterate_object_tree,
)
from federation.gateway.flower_objects import with_content
from federation.gateway.reply import Outgoing
from federation.gateway.task_intake import Task
from federation.gateway.upstream import Declined, Unreachable, Upstream

LONGEST_WAIT_SECONDS = 20.0
GIVE_UP_SECONDS = 6 * 3600.0


class Departures:
    """Sends answers. `read`: reads a chunk from the spool."""

    def __init__(self, upstream: Upstream, read: Callable[[str], bytes]) -> None:
        self._upstream, self._read = upstream, read

    async def deliver(self, task: Task, outgoing: Outgoing) -> bool:
        """Send the answer to a task; return whether the server accepted it."""
        last = min(task.expires, time.time() + GIVE_UP_SECONDS)
        wait_s = 1.0
        while True:
            try:
                await self._send(task, outgoing)
                return True
            except Declined:
                return False
            except Unreachable:
                if time.time() + wait_s > last:
                    return False
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_SECONDS)

    async def _send(self, task: Task, outgoing: Outgoing) -> None:
        """Raises Unreachable, Declined."""
        request = PushMessagesRequest(
            node=Node(node_id=task.message.metadata.dst_node_id),
            messages_list=[outgoing.message],
            message_object_trees=[outgoing.tree],
            clientapp_runtime_list=[round(task.runtime_s)],
        )
        answer = await self._upstream.ask("push-messages", request, PushMessagesResponse)
        wanted = set(answer.objects_to_push)
        # Only objects of this message, children first, and one at a time because chunks are large.
        for id in dict.fromkeys(part.object_id for part in iterate_object_tree(outgoing.tree)):
            if id in wanted:
                await self._push(task, id, answer.session_id, outgoing)

    async def _push(self, task: Task, id: str, session: str, outgoing: Outgoing) -> None:
        content = outgoing.objects[id] if id in outgoing.objects else await asyncio.to_thread(self._read, id)
        request = PushObjectRequest(
            node=Node(node_id=task.message.metadata.dst_node_id),
            run_id=task.run_id,
            object_id=id,
            session_id=session,
        )
        body = with_content(request, content)
        del content  # the body holds a copy
        if not (await self._upstream.ask("push-object", body, PushObjectResponse)).stored:
            raise Unreachable("the session has ended; the next attempt starts another")
