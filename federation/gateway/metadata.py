"""Check the server's descriptions of messages and runs, and compose new ones for the node.

The node receives no other metadata from the server. A message's metadata is checked first, because no reply can be
composed without it.
"""

import math

from federation.approval import fab
from federation.flower.messages import Metadata, Run, metadata_from_proto, metadata_to_proto, user_config_to_proto
from federation.gateway import reasons
from federation.system.digests import SHA256
from models.refusal import Refusal

MAX_TTL_SECONDS = 366 * 24 * 3600.0
MAX_CREATED_AT = 1e11  # seconds since 1970 (the year 5138): sums of times stay finite
MAX_TYPE_CHARACTERS = 80
MAX_GROUP_CHARACTERS = 255


def checked_metadata(received: Metadata, node_id: int) -> Metadata:
    """Return the metadata without unknown fields. `node_id`: this node's id, or 0 if not known yet.

    Raises Refusal E_TASK_UNANSWERABLE if Flower's classes reject the metadata, or if it is not that of a task.
    """
    problem = _problem(received, node_id)
    if problem:
        raise Refusal(reasons.TASK_UNANSWERABLE, private=problem)
    try:
        return metadata_to_proto(metadata_from_proto(received))
    except ValueError as error:  # Flower checks the message's type
        raise Refusal(reasons.TASK_UNANSWERABLE, private=ascii(received.message_type)) from error


def run_for_node(received: Run, app: fab.App, study: str, name: str) -> Run:
    """Return the run as the node receives it: only what starts the app, each value from a checked source.

    The server's own values would also choose the folder in which the node looks for the app (by the app's name and
    version) and the program that it starts (by the task's type).
    """
    project = app.config["project"]
    return Run(
        run_id=received.run_id,
        series_id=received.series_id,
        fab_hash=app.sha256,
        fab_id=f"{app.config['tool']['flwr']['app']['publisher']}/{project['name']}",
        fab_version=project["version"],
        override_config=user_config_to_proto({"study": study, "run": name}),
    )


def _problem(received: Metadata, node_id: int) -> str:
    """Name the wrong fields, or "" for none. Ids and texts are bounded because the ledger and the log hold them."""
    are_times = math.isfinite(received.created_at) and math.isfinite(received.ttl)
    wrong = {
        "times": not (are_times and 0 <= received.created_at <= MAX_CREATED_AT and 0 < received.ttl <= MAX_TTL_SECONDS),
        "message_id": not SHA256.fullmatch(received.message_id),
        "reply_to_message_id": bool(received.reply_to_message_id)
        and not SHA256.fullmatch(received.reply_to_message_id),
        "message_type": len(received.message_type) > MAX_TYPE_CHARACTERS,
        "group_id": len(received.group_id) > MAX_GROUP_CHARACTERS,
        "dst_node_id": node_id not in (0, received.dst_node_id),
    }
    return ", ".join(name for name, is_wrong in wrong.items() if is_wrong)
