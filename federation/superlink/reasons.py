"""Reasons why the study's server cannot be asked."""

from models.refusal import Reason

NO_SERVER = Reason(
    "E_NO_SERVER",
    "this folder holds no server",
    "Make one first: fedthorax server init DIR.",
)
SERVER_UNREACHABLE = Reason(
    "E_SERVER_UNREACHABLE",
    "the study's server does not answer on port {port}",
    "Start it first: fedthorax server start DIR. Its log is in DIR/logs.",
)
ALREADY_ENROLLED = Reason(
    "E_ALREADY_ENROLLED",
    "this key is already enrolled, for the site {site}",
    "Nothing is left to do if that is the site you mean; each site needs a key of its own.",
)
NOT_FOR_NODE = Reason(
    "E_NOT_FOR_NODE",
    "the request concerns a message, an object or a run that this node was not sent",
    "A node of this version sends no such request while its task lasts. If the server's log repeats it for one site, "
    "ask that site's operator, and revoke its certificate if the key was stolen.",
)
KEY_REVOKED = Reason(
    "E_KEY_REVOKED",
    "this node's key was revoked",
    "Move keys/node and keys/node.pub away and join again: a new key is made.",
)
SERVER_MOVED = Reason(
    "E_SERVER_MOVED",
    "this server was exported, and its study goes on elsewhere",
    "Two servers with one roster would part ways. If nobody imported the archive or ever will: delete the file MOVED "
    "in the server's folder, and this one goes on.",
)
IMPORT_UNFINISHED = Reason(
    "E_IMPORT_UNFINISHED",
    "an import into this folder is under way, or was broken off",
    "If none is under way: delete the folder, and import the archive again.",
)
RUN_UNKNOWN = Reason(
    "E_RUN_UNKNOWN",
    "the server knows no such run",
    "fedthorax study list names them; a run belongs to the server folder that it was started on (--server).",
)
CONTROL_FAILED = Reason(
    "E_CONTROL_FAILED",
    "the server refused the request: {answer}",
    "Read DIR/logs/superlink.log on the server's machine.",
)
