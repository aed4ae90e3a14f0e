"""Reasons why the study's server does not start."""

from models.refusal import Reason

CERTIFICATE_ENDS = Reason(
    "W_CERTIFICATE_ENDS",
    "the certificate of {holder} is valid only until {until}",
    "The server's: fedthorax server renew DIR, then start it again. A site's: fedthorax node renew SITE_DIR.",
)
EXISTS = Reason(
    "E_EXISTS",
    "this folder already holds a server",
    "Start it, or choose another folder for a new one.",
)
PORT_IN_USE = Reason(
    "E_PORT_IN_USE",
    "another process already listens on port {port}",
    "Stop it (perhaps this server is running already), or set another port in server.toml.",
)
SERVER_DATABASE = Reason(
    "E_SERVER_DATABASE",
    "the server's database {file} is damaged",
    "Keep the file, put its newest backup in its place as docs/reliability.md says, and start the server again.",
)
