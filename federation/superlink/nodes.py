"""The hospitals' nodes that a running SuperLink knows: registered, struck off, listed."""

from dataclasses import dataclass
from pathlib import Path

from federation.superlink import reasons
from federation.superlink.control import control
from models.refusal import Refusal

_UNREGISTERED = "unregistered"  # Flower's NodeStatus of a node that was struck off; it stays in the list for good


@dataclass(frozen=True)
class Site:
    """One registered node. `node_id` stays the same across restarts, because it belongs to the key."""

    name: str
    node_id: int
    online: bool


def enrol(folder: Path, public_key: bytes, name: str) -> int:
    """Let the holder of a node key (PEM) take part as site `name`, on the running server. Returns the node's id.

    Whoever had the name before with another key is struck off. Raises Refusal: E_ALREADY_ENROLLED if another site
    has the key, E_KEY_REVOKED if it was struck off, E_NO_SERVER, E_SERVER_UNREACHABLE.
    """
    from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest

    with control(folder) as client:
        nodes = client.ListNodes(ListNodesRequest()).nodes_info
        for node in nodes:
            if node.public_key == public_key:
                if node.status == _UNREGISTERED:
                    raise Refusal(reasons.KEY_REVOKED)
                if node.name != name:
                    raise Refusal(reasons.ALREADY_ENROLLED, site=node.name)
                return int(node.node_id)
        for node in nodes:
            if node.name == name and node.status != _UNREGISTERED:
                client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
        return int(client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name)).node_id)


def strike_off(folder: Path, name: str) -> None:
    """Let the node of site `name` take part no longer. Raises Refusal: E_NO_SERVER, E_SERVER_UNREACHABLE."""
    from flwr.proto.control_pb2 import ListNodesRequest, UnregisterNodeRequest

    with control(folder) as client:
        for node in client.ListNodes(ListNodesRequest()).nodes_info:
            if node.name == name and node.status != _UNREGISTERED:
                client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))


def sites(folder: Path) -> list[Site]:
    """The sites whose nodes are registered with the running server, by name.

    Raises Refusal: E_NO_SERVER, E_SERVER_UNREACHABLE.
    """
    from flwr.proto.control_pb2 import ListNodesRequest

    with control(folder) as client:
        nodes = client.ListNodes(ListNodesRequest()).nodes_info
    registered = (node for node in nodes if node.status != _UNREGISTERED)
    return sorted((Site(n.name, n.node_id, n.status == "online") for n in registered), key=lambda site: site.name)
