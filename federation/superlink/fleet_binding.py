"""Restrict each node to its own messages: ASGI middleware of the SuperLink, behind Flower's authentication.

The ingress admits every holder of a certificate's key of the study, and requires Flower's signature with that key.
Flower 1.42 then checks that the node id in a request belongs to the key. It does not check whose messages, sessions and
objects the request names. This middleware does so, where the requests are parsed and the messages are known:

* A node may send replies to messages that it received, in its own name, and no other message.
* It may push objects only into sessions of its own replies.
* It may read objects of messages that it received, and the runs and apps of those messages.
* It may confirm messages that it received, which deletes them.

A refused request is answered with 403 and a code; the header REFUSED_HEADER tells the ingress to log it.
"""

import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as ASGIMessage

from federation.flower.addresses import PREFIX
from federation.flower.link_state import (
    SUPERLINK_NODE_ID,
    MessageIns,
    MessageRes,
    ObjectChild,
    ObjectPushSession,
    ObjectPushSessionRoot,
    SqlLinkState,
    StoredObject,
    get_linkstate,
    uint64_to_int64,
)
from federation.flower.messages import (
    ActivateNodeRequest,
    ConfirmMessageReceivedRequest,
    DeactivateNodeRequest,
    GetFabRequest,
    GetRunRequest,
    PullMessagesRequest,
    PullObjectRequest,
    PushMessagesRequest,
    PushMessagesResponse,
    PushObjectRequest,
    RegisterNodeFleetRequest,
    SendNodeHeartbeatRequest,
    UnregisterNodeFleetRequest,
    iterate_object_tree,
)
from federation.superlink import reasons
from federation.superlink.control import REFUSED_HEADER
from models.refusal import Refusal

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from sqlalchemy.orm import Session

_REMEMBERED = 32  # announcements per node
TREES_KEPT = 256  # messages; about 30 kB each for a model of 250 arrays
_AT_ONCE = 10_000  # ids in one statement; SQLite allows 32,766


@dataclass
class Announced:
    """What a node has announced since the SuperLink started: opened sessions, and ids of its replies."""

    sessions: deque[str] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    answers: deque[str] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))


class Trees:
    """The objects of each message. They never change, and finding them takes several milliseconds, so they are kept.

    `most`: so many messages are kept; then the one that was found first is dropped.
    """

    def __init__(self, most: int = TREES_KEPT) -> None:
        self._most = most
        self._kept: OrderedDict[str, frozenset[str]] = OrderedDict()
        self._lock = Lock()

    def of(self, session: "Session", root: str) -> frozenset[str]:
        """Return the ids of a message's objects, including its own."""
        with self._lock:
            found = self._kept.get(root)
        if found is None:
            found = _objects_below(session, root)
            with self._lock:
                self._kept[root] = found
                if len(self._kept) > self._most:
                    self._kept.popitem(last=False)
        return found


class FleetBinding:
    """Passes a Fleet API request to its handler only if it concerns the caller's own messages.

    Flower forgets whose reply a session belongs to once the study's code has fetched the reply. Therefore this class
    keeps the latest sessions of each node.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._announced: defaultdict[int, Announced] = defaultdict(Announced)
        self._trees = Trees()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        # Set by Flower's own middleware when it has parsed the request; without it, nothing was authenticated either.
        asked = getattr(request.state, "protobuf_request", None)
        node_id = asked.node.node_id if asked is not None and hasattr(asked, "node") else 0
        try:
            await run_in_threadpool(check, asked, get_linkstate(request), self._announced[node_id], self._trees)
        except Refusal as refusal:
            content = {"code": 403, "detail": refusal.code, "extra": refusal.says}
            response = JSONResponse(content, status_code=403, headers={REFUSED_HEADER: refusal.code})
            await response(scope, receive, send)
            return

        async def send_on(message: ASGIMessage) -> None:
            answer = getattr(request.state, "protobuf_response", None)  # set before the first part is sent
            if message["type"] == "http.response.start" and isinstance(answer, PushMessagesResponse):
                self._announced[node_id].sessions.append(answer.session_id)
                self._announced[node_id].answers.extend(answer.results)
            await send(message)

        await self._app(scope, receive, send_on)


def check(request: "Message | None", state: object, announced: Announced, trees: Trees) -> None:
    """Raise Refusal E_NOT_FOR_NODE if the request concerns another node's data.

    The request's node id is known to be the caller's; `announced` is the caller's.
    """
    if not isinstance(state, SqlLinkState):
        raise TypeError("the server does not keep its messages in a database")
    with state.session() as session:
        match request:
            case ActivateNodeRequest() | DeactivateNodeRequest() | SendNodeHeartbeatRequest() | PullMessagesRequest():
                allowed = True  # they name only the node
            case RegisterNodeFleetRequest() | UnregisterNodeFleetRequest():
                allowed = True  # Flower refuses both if nodes are enrolled
            case GetRunRequest() | GetFabRequest():
                allowed = bool(_messages_to(session, request.node.node_id, request.run_id))
            case PushMessagesRequest():
                allowed = _is_own_answer(session, request, announced)
            case PushObjectRequest():
                allowed = _is_own_session(session, request, announced)
            case PullObjectRequest():
                roots = _messages_to(session, request.node.node_id, request.run_id)
                allowed = any(request.object_id in trees.of(session, root) for root in roots)
            case ConfirmMessageReceivedRequest():
                roots = _messages_to(session, request.node.node_id, request.run_id)
                allowed = request.message_object_id in roots
            case _:
                allowed = False
    if not allowed:
        raise Refusal(reasons.NOT_FOR_NODE)


def _messages_to(session: "Session", node_id: int, run_id: int) -> set[str]:
    """Return the ids of a run's messages that were sent to a node and are not completed."""
    found = session.scalars(
        select(MessageIns.message_id).where(
            MessageIns.dst_node_id == uint64_to_int64(node_id), MessageIns.run_id == uint64_to_int64(run_id)
        )
    )
    return {message_id for message_id in found if message_id is not None}


def _objects_below(session: "Session", root: str) -> frozenset[str]:
    """Return the ids of a message's objects, including its own."""
    below = select(ObjectChild.child_id).where(ObjectChild.parent_id == root).cte(recursive=True)
    below = below.union(select(ObjectChild.child_id).join(below, ObjectChild.parent_id == below.c.child_id))
    # Most objects belong to the model, which is sent to all nodes: keep one string for each.
    return frozenset(map(sys.intern, (root, *session.scalars(select(below.c.child_id)))))


def _is_own_answer(session: "Session", request: PushMessagesRequest, announced: Announced) -> bool:
    """Tell whether a request holds exactly one reply of the caller, to a message that the caller received.

    If the answered message is no longer known, Flower itself drops the reply.
    """
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        return False
    answer, tree, node_id = request.messages_list[0].metadata, request.message_object_trees[0], request.node.node_id
    if answer.src_node_id != node_id or answer.dst_node_id != SUPERLINK_NODE_ID or not answer.reply_to_message_id:
        return False
    if not answer.message_id or tree.object_id != answer.message_id:
        return False
    asked = session.execute(
        select(MessageIns.dst_node_id, MessageIns.run_id).where(MessageIns.message_id == answer.reply_to_message_id)
    ).first()
    if asked is not None and tuple(asked) != (uint64_to_int64(node_id), uint64_to_int64(answer.run_id)):
        return False
    messages = _messages_among(session, [part.object_id for part in iterate_object_tree(tree)])
    # Whole messages within the reply would be deleted with it. The only one allowed is the reply itself, when it is
    # announced again.
    again = set(announced.answers) | _answers_of(session, node_id, {answer.message_id})
    return messages <= again & {answer.message_id}


def _messages_among(session: "Session", ids: Sequence[str]) -> set[str]:
    """Return which objects are whole messages of any node: known as messages, or stored and part of nothing."""
    found: set[str | None] = set()
    for first in range(0, len(ids), _AT_ONCE):
        some = ids[first : first + _AT_ONCE]
        found.update(session.scalars(select(MessageIns.message_id).where(MessageIns.message_id.in_(some))))
        found.update(session.scalars(select(MessageRes.message_id).where(MessageRes.message_id.in_(some))))
        stored = select(StoredObject.object_id).where(StoredObject.object_id.in_(some), StoredObject.ref_count == 0)
        found.update(session.scalars(stored))
    return {id for id in found if id is not None}


def _answers_of(session: "Session", node_id: int, ids: Collection[str]) -> set[str]:
    """Return which of these are replies of the node that the study's code has not fetched yet."""
    found = session.scalars(
        select(MessageRes.message_id).where(
            MessageRes.message_id.in_(ids), MessageRes.src_node_id == uint64_to_int64(node_id)
        )
    )
    return {id for id in found if id is not None}


def _is_own_session(session: "Session", request: PushObjectRequest, announced: Announced) -> bool:
    """Tell whether objects are pushed for the caller's own reply. Flower itself answers for an ended session."""
    if not request.session_id:  # Flower would use any session that waits for the object
        return False
    if request.session_id in announced.sessions or session.get(ObjectPushSession, request.session_id) is None:
        return True
    roots = session.scalars(
        select(ObjectPushSessionRoot.root_object_id).where(ObjectPushSessionRoot.session_id == request.session_id)
    ).all()
    return bool(roots) and _answers_of(session, request.node.node_id, roots) == set(roots)
