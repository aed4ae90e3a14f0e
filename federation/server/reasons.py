"""Reasons why the study's server does not start."""

from models.refusal import Reason

CERTIFICATE_ENDS = Reason(
    "W_CERTIFICATE_ENDS",
    "the certificate of {holder} is valid only until {until}",
    "For the server: fedthorax server renew DIR, then restart it. For a site: fedthorax node renew SITE_DIR.",
)
EXISTS = Reason(
    "E_EXISTS",
    "this folder already contains a server",
    "Start that server, or choose another folder for a new one.",
)
PORT_IN_USE = Reason(
    "E_PORT_IN_USE",
    "another process already listens on port {port}",
    "Stop that process (this server may already be running), or set another port in server.toml.",
)
SERVER_DATABASE = Reason(
    "E_SERVER_DATABASE",
    "the server's database {file} is damaged",
    "Keep the file, restore its newest backup as docs/reliability.md says, and restart the server.",
)
