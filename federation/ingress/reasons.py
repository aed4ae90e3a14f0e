"""Reasons why the ingress refuses a request."""

from models.refusal import Reason

NO_CERTIFICATE = Reason(
    "E_NO_CERTIFICATE",
    "the caller shows no certificate",
    "Let the site join the study first: fedthorax node join SITE_DIR CODE.",
)
NODE_KEY = Reason(
    "E_NODE_KEY",
    "the request is signed with another key than the one that the caller's certificate is for",
    "Use keys/node and keys/node.crt of one and the same site; if they do not belong together, join again.",
)
CLOCK = Reason(
    "E_CLOCK",
    "the request was signed {seconds} s {direction} the server's time",
    "Set both clocks by NTP: Flower accepts what was signed up to 300 s before, and 5 s after, the server's time.",
)
NO_WAY = Reason(
    "E_NO_WAY",
    "the door leads nowhere from this path",
    "Only a node's own requests and enrolment pass; everything else is for the server's own machine.",
)
BODY_SIZE = Reason(
    "E_BODY_SIZE",
    "the request does not tell its length, or is longer than {megabytes} MB",
    "Install the same version of fedthorax at the site and at the server.",
)
TOO_SLOW = Reason(
    "E_TOO_SLOW",
    "the request did not arrive within {seconds} s",
    "Look at the site's connection to the server.",
)
DOOR_BUSY = Reason(
    "E_DOOR_BUSY",
    "the caller has too many requests under way, or too many tries in a minute",
    "Wait a minute. If it comes again, see in the server's logs/door.log what the site asks for.",
)
SUPERLINK_SILENT = Reason(
    "E_SUPERLINK_SILENT",
    "the SuperLink behind the door does not answer",
    "Read DIR/logs/superlink.log on the server's machine, and start the server again.",
)
