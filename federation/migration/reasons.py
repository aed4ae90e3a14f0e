"""Reasons why a server cannot be moved."""

from models.refusal import Reason

SERVER_RUNS = Reason(
    "E_SERVER_RUNS",
    "the server is running, or another process has its port {port}",
    "Stop it first, best just after a round: what a round under way has learnt is not carried, and it is done again.",
)
IMPORT_FOLDER = Reason(
    "E_IMPORT_FOLDER",
    "the folder is not empty",
    "Give one that does not exist yet, or an empty one.",
)
ARCHIVE_EXISTS = Reason(
    "E_ARCHIVE_EXISTS",
    "a file of this name is there already",
    "Give another name, or move that file away.",
)
ARCHIVE_FORMAT = Reason(
    "E_ARCHIVE_FORMAT",
    "this is no archive of a study's server, or one of another version's format",
    "Import it with the version that exported it; `tar -tf` shows what a file holds.",
)
ARCHIVE_DAMAGED = Reason(
    "E_ARCHIVE_DAMAGED",
    "the archive is damaged or cut short, or a file changed while it was exported",
    "Copy it again and compare its SHA-256 with what the export printed; if it differs there too, export again.",
)
MOVE_PATH = Reason(
    "E_MOVE_PATH",
    "the archive holds what no export writes: a path out of its folder, a link, a device, two files in one place",
    "Do not use it, and ask whoever sent it where it comes from.",
)
ARCHIVE_NAME = Reason(
    "E_ARCHIVE_NAME",
    "a file's name is too long for the archive (255 characters), or the file too large (8 GiB)",
    "Rename it or take it out; it is one that somebody added, for no run writes such files.",
)
PASSPHRASE = Reason(
    "E_PASSPHRASE",
    "the passphrase cannot be used: {problem}",
    "Give it when asked, or in a file with --passphrase-file; it is the one with which the archive was exported.",
)
MOVE_LINK = Reason(
    "E_MOVE_LINK",
    "the server's folder of runs holds a link or something else that is not a plain file",
    "Put the file itself in the link's place, or take it out.",
)
MOVE_WRITE = Reason(
    "E_MOVE_WRITE",
    "a file could not be read or written; nothing half-made is left",
    "Free space on the disk or correct its permissions, then repeat the command.",
)
MOVE_LOST = Reason(
    "E_MOVE_LOST",
    "what was written is not what the archive holds: {what}; all of it was taken out again",
    "Nothing is lost: the archive is whole. Repeat the command, with another version of MLflow if it is MLflow's.",
)
MLFLOW_TAKEN = Reason(
    "E_MLFLOW_TAKEN",
    "this MLflow has another experiment or model named {name} (perhaps among the deleted)",
    "Rename it there (a deleted one: mlflow gc), or give the study an MLflow of its own.",
)
MLFLOW_SOURCE = Reason(
    "E_MLFLOW_SOURCE",
    "version {version} of the model {model} in MLflow does not come from a run of its study",
    "Delete that version, or register it from one of the study's runs.",
)
