"""Register, remove and list the hospitals' nodes of a running SuperLink."""

from dataclasses import dataclass
from pathlib import Path

from federation.superlink import reasons
from federation.superlink.control import control
from models.refusal import Refusal

_UNREGISTERED = "unregistered"  # Flower's NodeStatus of a removed node, which stays in the list forever


@dataclass(frozen=True)
class Site:
    """One registered node. `node_id` stays the same across restarts, because it belongs to the key."""

    name: str
    node_id: int
    online: bool


def enrol(folder: Path, public_key: bytes, name: str) -> int:
    """Register a node key (PEM) as site `name` on the running server; return the node's id.

    A node of this name with another key is removed. Raises Refusal: E_ALREADY_ENROLLED if another site has the key,
    E_KEY_REVOKED if the key was removed before, E_NO_SERVER, E_SERVER_UNREACHABLE.
    """
    from federation.flower.control import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest

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
    """Remove the node of site `name`. Raises Refusal: E_NO_SERVER, E_SERVER_UNREACHABLE."""
    from federation.flower.control import ListNodesRequest, UnregisterNodeRequest

    with control(folder) as client:
        for node in client.ListNodes(ListNodesRequest()).nodes_info:
            if node.name == name and node.status != _UNREGISTERED:
                client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))


def sites(folder: Path) -> list[Site]:
    """Return the sites whose nodes are registered with the running server, by name.

    Raises Refusal: E_NO_SERVER, E_SERVER_UNREACHABLE.
    """
    from federation.flower.control import ListNodesRequest

    with control(folder) as client:
        nodes = client.ListNodes(ListNodesRequest()).nodes_info
    registered = (node for node in nodes if node.status != _UNREGISTERED)
    return sorted((Site(n.name, n.node_id, n.status == "online") for n in registered), key=lambda site: site.name)
