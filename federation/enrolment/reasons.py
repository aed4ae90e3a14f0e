"""Reasons why a hospital cannot join, or a certificate be used."""

from models.refusal import Reason

KEY_EXISTS = Reason(
    "E_KEY_EXISTS",
    "a key or certificate named {file} is already there, and keys are never overwritten",
    "Use it, or move it away first. A node with a new key has to be enrolled again.",
)
HOST_NAME = Reason(
    "E_HOST_NAME",
    "{host} is neither a host name nor an IP address",
    "Give the name or address alone, as the hospitals will dial it: no scheme, no port, no path.",
)
PUBLIC_KEY = Reason(
    "E_PUBLIC_KEY",
    "the file is not a node's public key",
    "Give the .pub file that was made beside the node's private key (ECDSA P-384, OpenSSH format).",
)
CERTIFICATE_EXPIRED = Reason(
    "E_CERTIFICATE_EXPIRED",
    "the certificate of {holder} was valid until {until}",
    "The server's: fedthorax server renew DIR. A site's: the study's office enrols it again, and it joins again.",
)
AUTHORITY = Reason(
    "E_AUTHORITY",
    "this authority cannot sign for a study: {problem}",
    "Give the PEM certificate of an authority that may sign certificates and CRLs, and its key without a passphrase.",
)
NODE_CERTIFICATE = Reason(
    "E_NODE_CERTIFICATE",
    "the node's certificate is damaged, or was not made for the node's key",
    "Join the study again: fedthorax node join SITE_DIR CODE, with a new code from the study's office.",
)
SITE_NAME = Reason(
    "E_SITE_NAME",
    "a site's name is made of the letters a to z, digits and hyphens",
    "Choose a name such as hospital-a; it is shown to every participant, so it names no person.",
)
SITE_NAME_TAKEN = Reason(
    "E_SITE_NAME_TAKEN",
    "a site named {site} has joined already",
    "Choose another name. If that site lost its key or certificate: fedthorax server revoke DIR NAME, then enrol it.",
)
SITE_UNKNOWN = Reason(
    "E_SITE_UNKNOWN",
    "the study has no site of this name, and has invited none",
    "`fedthorax server sites DIR` shows the names.",
)
CERTIFICATE_UNKNOWN = Reason(
    "E_CERTIFICATE_UNKNOWN",
    "the caller's certificate was not issued by this study",
    "Let the site join this study: fedthorax node join SITE_DIR CODE, with a code from the study's office.",
)
CERTIFICATE_REVOKED = Reason(
    "E_CERTIFICATE_REVOKED",
    "the study has revoked this site's certificate",
    "Ask the study's office. To join again the site needs a new code and a new key.",
)
INVITATION = Reason(
    "E_INVITATION",
    "the code is wrong, or void after too many wrong tries",
    "Copy the whole code again. If it is void, the study's office makes a new one: fedthorax server enrol DIR NAME.",
)
INVITATION_OVER = Reason(
    "E_INVITATION_OVER",
    "the code is older than 7 days, or another node has used it",
    "The study's office makes a new one: fedthorax server enrol DIR NAME. If nobody of yours used it, say so there.",
)
JOIN_CODE = Reason(
    "E_JOIN_CODE",
    "this is not an enrolment code",
    "Give the whole code as the study's office sent it: host:port/authority/invitation/secret.",
)
OTHER_AUTHORITY = Reason(
    "E_OTHER_AUTHORITY",
    "the server that answered belongs to another authority than the code names",
    "Do not go on: something between here and the study's server answers in its place. Tell the study's office.",
)
JOIN_REFUSED = Reason(
    "E_JOIN_REFUSED",
    "the study's server refused: {answer}",
    "The table of refusals tells what this code means; the server's logs/door.log says more.",
)
NODE_FILE = Reason(
    "E_NODE_FILE",
    "{file} is not there, or this user may not read it",
    "Put the study's ca.crt where ca_certificate in site.toml says; run the node as the user who owns the site.",
)
SERVER_UNTRUSTED = Reason(
    "E_SERVER_UNTRUSTED",
    "the certificate of the server that answered is not the study's, or not for the name that was dialled",
    "Compare the ca.crt here with the coordinator's, and dial the server by a name that it was made for.",
)
SERVER_SILENT = Reason(
    "E_SERVER_SILENT",
    "the study's server does not answer the node",
    "Check the server's address and port, that it runs, and that the firewall lets the node out to it.",
)
SERVER_ADDRESS = Reason(
    "E_SERVER_ADDRESS",
    "this is no address of a server",
    "Give the name and the port that the study's office sent, as in study.example:8443, without https://.",
)
NO_SERVER_SET = Reason(
    "E_NO_SERVER_SET",
    "this site belongs to no study yet",
    "Set [server] address in site.toml and put the study's ca.crt where ca_certificate says.",
)
