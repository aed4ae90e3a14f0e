"""Reasons for which the study's server cannot be reached or refuses a request."""

from models.refusal import Reason

NO_SERVER = Reason(
    "E_NO_SERVER",
    "this folder does not contain a server",
    "Create one first: fedthorax server init DIR.",
)
SERVER_UNREACHABLE = Reason(
    "E_SERVER_UNREACHABLE",
    "the study's server does not answer on port {port}",
    "Start it first: fedthorax server start DIR. Its log is in DIR/logs.",
)
ALREADY_ENROLLED = Reason(
    "E_ALREADY_ENROLLED",
    "this key is already enrolled, for the site {site}",
    "No action is needed if this is the intended site. Each site needs its own key.",
)
NOT_FOR_NODE = Reason(
    "E_NOT_FOR_NODE",
    "the request concerns a message, an object or a run that was not sent to this node",
    "A node of this version sends no such request during its task. If the server's log shows this repeatedly for a "
    "site, ask that site's operator, and revoke its certificate if the key was stolen.",
)
KEY_REVOKED = Reason(
    "E_KEY_REVOKED",
    "this node's key was revoked",
    "Move keys/node and keys/node.pub away and join again. This creates a new key.",
)
SERVER_MOVED = Reason(
    "E_SERVER_MOVED",
    "this server was exported, and its study continues elsewhere",
    "Two servers with the same sites would diverge. If nobody has imported the archive or ever will, delete the file "
    "MOVED in the server's folder; then this server can continue.",
)
EXPORT_UNFINISHED = Reason(
    "E_EXPORT_UNFINISHED",
    "an export of this server is in progress or was killed",
    "If none is in progress, look for the archive that the file EXPORTING in the server's folder names. If there never "
    "was one, nothing has moved: delete EXPORTING, then this server can start, or be exported again. If the archive "
    "was imported or will be, rename EXPORTING to MOVED. Otherwise delete the archive first, then EXPORTING.",
)
IMPORT_UNFINISHED = Reason(
    "E_IMPORT_UNFINISHED",
    "an import into this folder is in progress or was interrupted",
    "If none is in progress, delete the folder and import the archive again.",
)
RUN_UNKNOWN = Reason(
    "E_RUN_UNKNOWN",
    "the server does not know this run",
    "List the runs with `fedthorax study list`. A run belongs to the server folder that it was started on (--server).",
)
CONTROL_FAILED = Reason(
    "E_CONTROL_FAILED",
    "the server refused the request: {answer}",
    "Read DIR/logs/superlink.log on the server's machine.",
)
