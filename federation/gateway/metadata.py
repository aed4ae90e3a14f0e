"""What the server tells of its messages and its runs, composed anew: the node is given nothing else of it.

A message's metadata are checked before anything else, because without them no answer can be composed.
"""

import math
import re

from flwr.common.serde import user_config_to_proto
from flwr.common.serde_utils import metadata_from_proto, metadata_to_proto
from flwr.proto.message_pb2 import Metadata
from flwr.proto.run_pb2 import Run

from federation.approval import fab
from federation.gateway import reasons
from models.refusal import Refusal

MAX_TTL_SECONDS = 366 * 24 * 3600.0
MAX_CREATED_AT = 1e11  # seconds since 1970, the year 5138: sums of times stay numbers
MAX_TYPE_CHARACTERS = 80
MAX_GROUP_CHARACTERS = 255

_SHA256 = re.compile(r"[0-9a-f]{64}")


def checked_metadata(told: Metadata, node_id: int) -> Metadata:
    """The metadata composed anew, without unknown fields. `node_id` is this node's; 0 if it is not known yet.

    Raises Refusal E_TASK_UNANSWERABLE for metadata that Flower's classes reject, or that are not a task's.
    """
    problem = _problem(told, node_id)
    if problem:
        raise Refusal(reasons.TASK_UNANSWERABLE, private=problem)
    try:
        return metadata_to_proto(metadata_from_proto(told))
    except ValueError as error:  # Flower checks the type
        raise Refusal(reasons.TASK_UNANSWERABLE, private=ascii(told.message_type)) from error


def run_for_node(told: Run, app: fab.App, study: str, name: str) -> Run:
    """The run as the node is told of it: what it needs to start the app, each from where it was checked.

    The server's own text would choose more than that: the folder in which the node looks for the app (by its name and
    version), and the program that it starts (by the type of the task).
    """
    project = app.config["project"]
    return Run(
        run_id=told.run_id,
        series_id=told.series_id,
        fab_hash=app.sha256,
        fab_id=f"{app.config['tool']['flwr']['app']['publisher']}/{project['name']}",
        fab_version=project["version"],
        override_config=user_config_to_proto({"study": study, "run": name}),
    )


def _problem(told: Metadata, node_id: int) -> str:
    """Which field is wrong, "" if none is. Ids and texts are bounded because the ledger and the log hold them."""
    are_times = math.isfinite(told.created_at) and math.isfinite(told.ttl)
    wrong = {
        "times": not (are_times and 0 <= told.created_at <= MAX_CREATED_AT and 0 < told.ttl <= MAX_TTL_SECONDS),
        "message_id": not _SHA256.fullmatch(told.message_id),
        "reply_to_message_id": bool(told.reply_to_message_id) and not _SHA256.fullmatch(told.reply_to_message_id),
        "message_type": len(told.message_type) > MAX_TYPE_CHARACTERS,
        "group_id": len(told.group_id) > MAX_GROUP_CHARACTERS,
        "dst_node_id": node_id not in (0, told.dst_node_id),
    }
    return ", ".join(name for name, is_wrong in wrong.items() if is_wrong)
