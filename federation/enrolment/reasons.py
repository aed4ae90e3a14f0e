"""Reasons for which a hospital cannot join, or a certificate cannot be used."""

from models.refusal import Reason

KEY_EXISTS = Reason(
    "E_KEY_EXISTS",
    "a key or certificate named {file} already exists, and keys are never overwritten",
    "Use the existing one, or move it away first. A node with a new key must be enrolled again.",
)
HOST_NAME = Reason(
    "E_HOST_NAME",
    "{host} is neither a host name nor an IP address",
    "Give only the name or address that the hospitals will connect to: no scheme, no port, no path.",
)
PUBLIC_KEY = Reason(
    "E_PUBLIC_KEY",
    "the file is not a node's public key",
    "Give the .pub file that was created with the node's private key (ECDSA P-384, OpenSSH format).",
)
CERTIFICATE_EXPIRED = Reason(
    "E_CERTIFICATE_EXPIRED",
    "the certificate of {holder} was valid until {until}",
    "For the server: fedthorax server renew DIR. For a site: the study's office enrols it again, and it joins again.",
)
AUTHORITY = Reason(
    "E_AUTHORITY",
    "this authority cannot sign for a study: {problem}",
    "Give the PEM certificate of an authority that may sign certificates and CRLs, and its key without a passphrase.",
)
NODE_CERTIFICATE = Reason(
    "E_NODE_CERTIFICATE",
    "the node's certificate is damaged, or belongs to another key than the node's",
    "Join the study again: fedthorax node join SITE_DIR CODE, with a new code from the study's office.",
)
SITE_NAME = Reason(
    "E_SITE_NAME",
    "a site's name may contain only the letters a to z, digits and hyphens",
    "Choose a name such as hospital-a. Every participant sees it, so it must not name a person.",
)
SITE_NAME_TAKEN = Reason(
    "E_SITE_NAME_TAKEN",
    "a site named {site} has already joined",
    "Choose another name. If that site lost its key or certificate: fedthorax server revoke DIR NAME, then enrol it.",
)
SITE_UNKNOWN = Reason(
    "E_SITE_UNKNOWN",
    "the study has neither a site nor an invitation of this name",
    "List the names with `fedthorax server sites DIR`.",
)
CERTIFICATE_UNKNOWN = Reason(
    "E_CERTIFICATE_UNKNOWN",
    "the caller's certificate was not issued by this study",
    "Let the site join this study: fedthorax node join SITE_DIR CODE, with a code from the study's office.",
)
CERTIFICATE_REVOKED = Reason(
    "E_CERTIFICATE_REVOKED",
    "the study has revoked this site's certificate",
    "Ask the study's office. To join again, the site needs a new code and a new key.",
)
INVITATION = Reason(
    "E_INVITATION",
    "the code is wrong, or was cancelled after too many wrong attempts",
    "Copy the whole code again. If it was cancelled, the study's office creates a new one: fedthorax server enrol DIR "
    "NAME.",
)
INVITATION_OVER = Reason(
    "E_INVITATION_OVER",
    "the code is older than 7 days, or another node has used it",
    "The study's office creates another: fedthorax server enrol DIR NAME. If none of yours used it, tell the office.",
)
JOIN_NAME = Reason(
    "E_JOIN_NAME",
    "the code is for a site with another name than {site}; it was not used",
    "Ask the study's office whether you have another hospital's code. If the office named this site otherwise, join "
    "with `--as` and that name.",
)
JOIN_CODE = Reason(
    "E_JOIN_CODE",
    "this is not an enrolment code",
    "Give the whole code as the study's office sent it: host:port/authority/invitation/secret.",
)
OTHER_AUTHORITY = Reason(
    "E_OTHER_AUTHORITY",
    "the server that answered belongs to another authority than the one in the code",
    "Do not continue: another machine may be impersonating the study's server. Tell the study's office.",
)
JOIN_REFUSED = Reason(
    "E_JOIN_REFUSED",
    "the study's server refused the request: {answer}",
    "The table of refusals explains the code; the server's logs/door.log has more details.",
)
NODE_FILE = Reason(
    "E_NODE_FILE",
    "{file} does not exist, or this user may not read it",
    "Put the study's ca.crt where ca_certificate in site.toml says. Run the node as the user who owns the site.",
)
SERVER_UNTRUSTED = Reason(
    "E_SERVER_UNTRUSTED",
    "the server's certificate is not the study's, or is not valid for the name that was used to connect",
    "Compare this site's ca.crt with the coordinator's, and connect by a name that the server's certificate contains.",
)
SERVER_SILENT = Reason(
    "E_SERVER_SILENT",
    "the study's server does not answer the node",
    "Check the server's address and port, that the server is running, that the firewall lets the node connect, and the "
    "proxy: `proxy` in [server] of site.toml, or HTTPS_PROXY.",
)
SERVER_ADDRESS = Reason(
    "E_SERVER_ADDRESS",
    "this is not the address of a server",
    "Give the name and the port that the study's office sent, for example study.example:8443, without https://.",
)
NO_SERVER_SET = Reason(
    "E_NO_SERVER_SET",
    "this site has not joined a study yet",
    "Ask the study's office for a code, and join with it: fedthorax node join SITE_DIR CODE.",
)
