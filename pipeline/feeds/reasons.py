"""Reasons why records cannot be received, or why a received message is not accepted."""

from models.refusal import Reason

NO_LISTENER = Reason(
    "E_NO_LISTENER",
    "site.toml sets up no listener for laboratory results",
    'Fill in [laboratory.listener] of site.toml, with format = "hl7" in [laboratory].',
)
LISTENER_RUNNING = Reason(
    "E_LISTENER_RUNNING",
    "another listener of this site is running",
    "Stop it first: only one process may receive results for a site.",
)
LISTENER_ADDRESS = Reason(
    "E_LISTENER_ADDRESS",
    "the address where this node receives laboratory results cannot be opened",
    "Correct `host` and `port` in [laboratory.listener] of site.toml. Another program may use the port.",
)
QUEUE = Reason(
    "E_QUEUE",
    "a received message could not be stored, so it was not accepted (AE)",
    "Free space on the disk, or lower `keep_free_gb` in [laboratory.listener] of site.toml. The sender sends it again.",
)
MESSAGE_HEADER = Reason(
    "E_MESSAGE_HEADER",
    "a received message does not begin with a valid MSH segment, or has no control id (MSH-10)",
    "Configure the sender to send one HL7 v2 message in each MLLP block, without batches.",
)
MESSAGE_KIND = Reason(
    "E_MESSAGE_KIND",
    "a received message is not a production message ORU^R01",
    "Configure the sender to send only ORU^R01 with MSH-11 = P to this node.",
)
MESSAGE_VERSION = Reason(
    "E_MESSAGE_VERSION",
    "a received message is not of HL7 version 2 (MSH-12)",
    "Configure the sender to send HL7 v2, in any of its versions.",
)
MESSAGE_CHARSET = Reason(
    "E_MESSAGE_CHARSET",
    "the character set of a received message (MSH-18) is not known, or its content is not valid in it",
    "Send ASCII, 8859/1 to 8859/15 or UNICODE UTF-8. Without MSH-18, `encoding` in [laboratory] of site.toml is used.",
)
MESSAGE_BROKEN = Reason(
    "E_MESSAGE_BROKEN",
    "the segments of a received message cannot be read",
    "Correct the interface: one message in each MLLP block, each segment ended by a carriage return, OBX after OBR.",
)
MESSAGE_SIZE = Reason(
    "E_MESSAGE_SIZE",
    "a received message is too long",
    "Send results without documents, or raise `max_message_mb` in [laboratory.listener] of site.toml.",
)
