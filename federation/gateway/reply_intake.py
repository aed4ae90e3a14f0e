"""Receive the node's reply into the spool, object by object, and no more than was announced."""

import asyncio
import secrets

from federation.flower.chunks import CHUNK_BYTES
from federation.flower.messages import ObjectTree
from federation.gateway import reasons
from federation.gateway.flower_objects import CHUNK_OVERHEAD, MAX_HEAD_BYTES, Content, object_id, read_content
from federation.gateway.spool import Objects
from federation.gateway.task_checks import small_objects, tree_ids
from models.refusal import Refusal

SLACK_BYTES = 2**20  # limit of a reply besides its arrays


class Reception:
    """One reply, announced by the tree of its objects. `session`: the id under which the node sends its objects."""

    def __init__(self, tree: ObjectTree, objects: Objects, *, max_array_bytes: int, max_objects: int) -> None:
        """Raises Refusal E_REPLY_DAMAGED if the tree is not that of a message."""
        self.session = secrets.token_hex(16)
        self.root = tree.object_id
        self._objects, self._max_bytes = objects, max_array_bytes + SLACK_BYTES
        self._small = set(small_objects(tree, reasons.REPLY_DAMAGED, most=max_objects))
        self._ids = tree_ids(tree)
        objects.clear()

    def missing(self) -> list[str]:
        """Return the ids of the objects that have not arrived yet."""
        return sorted(id for id in self._ids if id not in self._objects)

    async def take(self, id: str, content: bytes) -> None:
        """Store one object. Raises Refusal E_REPLY_DAMAGED, or OSError if the disk is full."""
        limit = MAX_HEAD_BYTES if id in self._small else CHUNK_BYTES + CHUNK_OVERHEAD
        if id not in self._ids or len(content) > limit or self._objects.size + len(content) > self._max_bytes:
            raise Refusal(reasons.REPLY_DAMAGED, private="an object that was not announced, or is too large")
        if await asyncio.to_thread(object_id, content) != id:
            raise Refusal(reasons.REPLY_DAMAGED, private="an object does not match its hash")
        await asyncio.to_thread(self._objects.put, id, content)

    def content(self) -> Content:
        """Return the records of the complete reply. Raises Refusal E_REPLY_DAMAGED."""
        small = {id: self._objects.get(id) for id in self._small}
        content = read_content(self.root, small, reasons.REPLY_DAMAGED)
        if content.ids != self._ids:
            raise Refusal(reasons.REPLY_DAMAGED, private="some objects belong to no record")
        return content
