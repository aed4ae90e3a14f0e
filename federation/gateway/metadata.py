"""The metadata of the server's message: checked before anything else, for without them no answer can be composed."""

import math
import re

from flwr.common.serde_utils import metadata_from_proto, metadata_to_proto
from flwr.proto.message_pb2 import Metadata

from federation import reasons
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
