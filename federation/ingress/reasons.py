"""Reasons why the ingress refuses a request."""

from models.refusal import Reason

NO_CERTIFICATE = Reason(
    "E_NO_CERTIFICATE",
    "the caller presented no certificate",
    "Let the site join the study first: fedthorax node join SITE_DIR CODE.",
)
NODE_KEY = Reason(
    "E_NODE_KEY",
    "the request is signed with a key that does not belong to the caller's certificate",
    "Use keys/node and keys/node.crt of the same site. If they do not belong together, join again.",
)
CLOCK = Reason(
    "E_CLOCK",
    "the request was signed {seconds} s {direction} the server's time",
    "Set both clocks by NTP. Flower accepts signatures from 300 s before to 5 s after the server's time.",
)
NO_WAY = Reason(
    "E_NO_WAY",
    "this path is not served to nodes",
    "Nodes can only enrol and send a node's own requests. Everything else is possible on the server's machine only.",
)
BODY_SIZE = Reason(
    "E_BODY_SIZE",
    "the request does not state its length, or is longer than {megabytes} MB",
    "Install the same version of fedthorax at the site and at the server.",
)
TOO_SLOW = Reason(
    "E_TOO_SLOW",
    "the request did not arrive within {seconds} s",
    "Check the site's network connection to the server.",
)
DOOR_BUSY = Reason(
    "E_DOOR_BUSY",
    "the caller has too many open requests, or too many attempts in one minute",
    "Wait a minute. If it happens again, look up the site's requests in the server's logs/door.log.",
)
SUPERLINK_SILENT = Reason(
    "E_SUPERLINK_SILENT",
    "the SuperLink behind the ingress is not responding",
    "Read DIR/logs/superlink.log on the server's machine, and restart the server.",
)
