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
LISTENER_TLS = Reason(
    "E_LISTENER_TLS",
    "a connection to the listener was closed: it did not use TLS, or showed no valid certificate of the authority",
    "Compare the sender's certificate with `ca_certificate` in [laboratory.listener] of site.toml: that authority must "
    "have signed it, and it must be valid. The sender must use TLS 1.2 or later. Nothing was accepted.",
)
MESSAGE_CUT = Reason(
    "E_MESSAGE_CUT",
    "a connection to the listener ended within a message, which was not accepted",
    "Check the network and the sender. It has no acknowledgement and sends the message again.",
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
NO_FHIR_SERVER = Reason(
    "E_NO_FHIR_SERVER",
    "site.toml names no FHIR server",
    "Fill in the section [fhir] of site.toml.",
)
FETCH_RUNNING = Reason(
    "E_FETCH_RUNNING",
    "another fetch of this site is running",
    "Wait until it has ended. All of the site's commands use what it fetches.",
)
FETCH_DISK = Reason(
    "E_FETCH_DISK",
    "what was fetched cannot be stored",
    "Free space on the disk of the site's folder, and make the node's user its owner. Then run the command again.",
)
FHIR_SILENT = Reason(
    "E_FHIR_SILENT",
    "the FHIR server does not respond, is busy, or closed the connection",
    "Check `url` in [fhir] of site.toml, or in [results.fhir] of clinic.toml, the server and the network. The next "
    "fetch continues where this one ended; results are sent again automatically.",
)
FHIR_AUTH = Reason(
    "E_FHIR_AUTH",
    "the FHIR server or its token server denies this node access",
    "Check token_file, or client_id, client_key, key_id and scope in [fhir] of site.toml, or in [results.fhir] of "
    "clinic.toml, with the server's administrator. The clock of this machine must be right.",
)
FHIR_UNTRUSTED = Reason(
    "E_FHIR_UNTRUSTED",
    "a trusted TLS connection to the FHIR server or its token server cannot be established",
    "Check `ca_certificate` in [fhir] of site.toml, or in [results.fhir] of clinic.toml, that the server uses TLS, and "
    "that its certificate names this address and has not expired. If it requires a client certificate, configure one.",
)
FHIR_PROXY = Reason(
    "E_FHIR_PROXY",
    "the proxy refuses this node's connection to the FHIR server",
    "Correct `proxy` in [fhir] of site.toml. Leave it empty if the server is reached directly.",
)
FHIR_ANSWER = Reason(
    "E_FHIR_ANSWER",
    "the FHIR server gave an unexpected answer",
    "Check that `url` in [fhir] of site.toml, or in [results.fhir] of clinic.toml, is the base of FHIR R4 in JSON. The "
    "server must offer `method`, and for results transactions. The site's screen shows more.",
)
FHIR_ORIGIN = Reason(
    "E_FHIR_ORIGIN",
    "the FHIR server points to another server, which was not contacted",
    "If files of an export are there, add its address to `file_origins` in [fhir] of site.toml. Otherwise the server "
    "must name itself as in `url`.",
)
FHIR_SIZE = Reason(
    "E_FHIR_SIZE",
    "a response of the FHIR server is too large",
    "Lower `page_size`, or raise `max_gb` in [fhir] of site.toml.",
)
FHIR_ENDLESS = Reason(
    "E_FHIR_ENDLESS",
    "the FHIR server does not come to a last page: {pages} were fetched",
    "Ask the server's administrator. If there are so many, raise `max_pages` in [fhir] of site.toml.",
)
FHIR_EXPORT_WAIT = Reason(
    "E_FHIR_EXPORT_WAIT",
    "the FHIR server has not completed the export yet",
    "Run the command again later: it waits for the same export. `export_hours` is in [fhir] of site.toml.",
)
NO_OMOP = Reason(
    "E_NO_OMOP",
    "site.toml names no OMOP database, or takes no outcomes from it",
    'Fill in the section [omop] of site.toml, and set format = "omop" in [outcomes].',
)
OMOP_SILENT = Reason(
    "E_OMOP_SILENT",
    "the OMOP database does not respond, or a query took too long",
    "Check `host` and `port` in [omop] of site.toml, the database and the network; raise `timeout_seconds` if needed.",
)
OMOP_AUTH = Reason(
    "E_OMOP_AUTH",
    "the OMOP database denies this node access",
    "Check user, password_file and database in [omop] of site.toml. The user needs SELECT on the tables of the CDM.",
)
OMOP_UNTRUSTED = Reason(
    "E_OMOP_UNTRUSTED",
    "a trusted TLS connection to the OMOP database cannot be established",
    "Enable TLS at the database, and check `ca_certificate` in [omop] of site.toml. The certificate must name `host`.",
)
OMOP_SCHEMA = Reason(
    "E_OMOP_SCHEMA",
    "the database does not have the tables and columns of OMOP CDM 5.3 or 5.4",
    "Check `cdm_schema`, `vocabulary_schema` and `patient_id` in [omop] of site.toml.",
)
MESSAGE_SIZE = Reason(
    "E_MESSAGE_SIZE",
    "a received message is too long",
    "Send results without documents, or raise `max_message_mb` in [laboratory.listener] of site.toml.",
)
FHIR_REFUSED = Reason(
    "E_FHIR_REFUSED",
    "the FHIR server refuses the resources that are sent to it",
    "Ask the server's administrator for the reason (its log). The server must accept transactions, and ids that a "
    'client sets, unless ids = "server" in [results.fhir] of clinic.toml. When that is solved, send the result again.',
)
HL7_SILENT = Reason(
    "E_HL7_SILENT",
    "the receiver of HL7 messages does not accept a connection, or gives no valid acknowledgement",
    "Check host and port in [results.hl7] of clinic.toml, whether the receiver runs, uses TLS as set there and accepts "
    "our certificate, and the network. The result is sent again automatically.",
)
HL7_BUSY = Reason(
    "E_HL7_BUSY",
    "the receiver of HL7 messages answers that it cannot take a message now",
    "Ask its administrator: it reports an error of its own (AR, or AE with error 206 or 207). The result is sent again "
    "automatically.",
)
HL7_UNTRUSTED = Reason(
    "E_HL7_UNTRUSTED",
    "a trusted TLS connection to the receiver of HL7 messages cannot be established",
    "Check `ca_certificate`, certificate and key in [results.hl7] of clinic.toml, and that the receiver uses TLS. Its "
    "certificate must name the host and be valid; ours must be valid too. The result is sent again automatically.",
)
HL7_REFUSED = Reason(
    "E_HL7_REFUSED",
    "the receiver of HL7 messages refuses the content of a message",
    "Ask its administrator for the reason. docs/results.md lists the segments and codes of the message. When that is "
    "solved, send the result again.",
)
