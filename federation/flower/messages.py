"""The messages between a node, its gateway and the SuperLink, and how Flower encodes them."""

from flwr.app.message import make_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import message_to_proto, user_config_from_proto, user_config_to_proto
from flwr.common.serde_utils import metadata_from_proto, metadata_to_proto
from flwr.proto.fab_pb2 import Fab, GetFabRequest, GetFabResponse
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse, Run
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

__all__ = [
    "HEARTBEAT_DEFAULT_INTERVAL",
    "ActivateNodeRequest",
    "ActivateNodeResponse",
    "ConfirmMessageReceivedRequest",
    "ConfirmMessageReceivedResponse",
    "DeactivateNodeRequest",
    "DeactivateNodeResponse",
    "Fab",
    "GetFabRequest",
    "GetFabResponse",
    "GetRunRequest",
    "GetRunResponse",
    "Metadata",
    "Node",
    "ObjectTree",
    "ProtoMessage",
    "ProtoRecordDict",
    "PullMessagesRequest",
    "PullMessagesResponse",
    "PullObjectRequest",
    "PullObjectResponse",
    "PushMessagesRequest",
    "PushMessagesResponse",
    "PushObjectRequest",
    "PushObjectResponse",
    "RegisterNodeFleetRequest",
    "Run",
    "SendNodeHeartbeatRequest",
    "SendNodeHeartbeatResponse",
    "UnregisterNodeFleetRequest",
    "iterate_object_tree",
    "make_message",
    "message_to_proto",
    "metadata_from_proto",
    "metadata_to_proto",
    "user_config_from_proto",
    "user_config_to_proto",
]
