"""Reasons for which a process could not be started, or a backup not be made or restored."""

from models.refusal import Reason

NOT_STARTED = Reason(
    "E_NOT_STARTED",
    "{process} did not start; the end of its log {log} shows the cause",
    "Read the log, remove the cause and start it again.",
)
CERTIFICATE_FILE = Reason(
    "E_CERTIFICATE_FILE",
    "the certificate or key {file} is missing or damaged, or the certificate and its key do not belong together",
    "At the server, put it back from a backup: fedthorax server restore. At a site, join the study again with a new "
    "code: fedthorax node join.",
)
BACKUP_EXISTS = Reason(
    "E_BACKUP_EXISTS",
    "a file with this name exists already",
    "Choose another name for the backup, for example one with the date, or delete the old backup.",
)
BACKUP_LINK = Reason(
    "E_BACKUP_LINK",
    "the link {file} in the folder leads to nothing, so a backup would lack it",
    "No backup was written. Mount the disk to which the link leads, or correct or delete the link.",
)
BACKUP_DATABASE = Reason(
    "E_BACKUP_DATABASE",
    "the database {file} cannot be copied: {problem}",
    "No backup was written. Check free space. If the database is damaged, move it away to back up the rest, and take "
    "it from the last backup.",
)
BACKUP_FOLDER = Reason(
    "E_BACKUP_FOLDER",
    "the folder to restore to is not empty",
    "Name a folder that does not exist yet. To go back to the backup, move the present folder away first.",
)
BACKUP_FORMAT = Reason(
    "E_BACKUP_FORMAT",
    "this is not a complete backup of a {kind}",
    "Use a file that `fedthorax node backup` (a site), `fedthorax server backup` (a server) or `fedthorax clinic "
    "backup` (a clinic) wrote. If it is damaged, copy it again.",
)
MONITORING_PORT = Reason(
    "E_MONITORING_PORT",
    "the port {port} for the metrics is in use",
    "Choose another port in [monitoring] of site.toml, or as monitoring_port in server.toml. 0 serves no metrics.",
)
