"""Messages that are serialized by hand are identical to those that protobuf serializes."""

import pytest
from flwr.proto.message_pb2 import PullObjectResponse, PushObjectRequest
from flwr.proto.node_pb2 import Node

from federation.gateway.flower_objects import with_content


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384, 5 * 2**20 + 18])
def test_message_with_large_content_equals_the_protobuf_encoding(length: int) -> None:
    content = bytes(range(256)) * (length // 256 + 1)
    content = content[:length]
    request = PushObjectRequest(node=Node(node_id=2**63), run_id=7, object_id="a" * 64, session_id="s")
    for message in (request, PullObjectResponse(object_found=True, object_available=True)):
        body = with_content(message, content)
        assert not message.object_content
        message.object_content = content
        assert type(message).FromString(body.read()) == message
