"""The SuperLink's database, as far as it says whose messages and objects these are."""

from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.server.superlink.linkstate import SqlLinkState
from flwr.supercore.state.schema.corestate_models import ObjectPushSession, ObjectPushSessionRoot
from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
from flwr.supercore.state.schema.objectstore_models import ObjectChild, StoredObject
from flwr.supercore.utils import uint64_to_int64
from flwr.superlink.dependencies.linkstate import get_linkstate

__all__ = [
    "SUPERLINK_NODE_ID",
    "MessageIns",
    "MessageRes",
    "ObjectChild",
    "ObjectPushSession",
    "ObjectPushSessionRoot",
    "SqlLinkState",
    "StoredObject",
    "get_linkstate",
    "uint64_to_int64",
]
