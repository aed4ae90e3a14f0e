"""Reasons why a server cannot be exported or imported."""

from models.refusal import Reason

SERVER_RUNS = Reason(
    "E_SERVER_RUNS",
    "the server is running, or another process uses its port {port}",
    "Stop it first, preferably just after a round: the current round is not exported and must be repeated.",
)
IMPORT_FOLDER = Reason(
    "E_IMPORT_FOLDER",
    "the folder is not empty",
    "Give a folder that does not exist yet, or an empty one.",
)
ARCHIVE_EXISTS = Reason(
    "E_ARCHIVE_EXISTS",
    "a file with this name exists already",
    "Choose another name, or move that file away.",
)
ARCHIVE_READ = Reason(
    "E_ARCHIVE_READ",
    "the archive cannot be opened: {problem}",
    "Check the path of the archive, which is the first argument, and whether you may read it.",
)
ARCHIVE_FORMAT = Reason(
    "E_ARCHIVE_FORMAT",
    "this is not an archive of a study's server, or its format is of another version",
    "Import it with the version that exported it. `tar -tf` lists the contents of an archive.",
)
ARCHIVE_DAMAGED = Reason(
    "E_ARCHIVE_DAMAGED",
    "the archive is damaged or incomplete, or a file changed while it was exported",
    "Copy it again and compare its SHA-256 with the output of the export. If the original differs too, export again.",
)
MOVE_PATH = Reason(
    "E_MOVE_PATH",
    "the archive contains what no export writes: a path outside its folder, a link, a device, a duplicate file or an "
    "impossible address",
    "Do not use it. Ask the sender where it comes from.",
)
ARCHIVE_NAME = Reason(
    "E_ARCHIVE_NAME",
    "a file's name is too long for the archive (255 characters), or the file too large (8 GiB)",
    "Rename or remove it. Somebody added it: no run writes such files.",
)
PASSPHRASE = Reason(
    "E_PASSPHRASE",
    "the passphrase cannot be used: {problem}",
    "Type the passphrase of the export at the prompt, or give it in a file with --passphrase-file.",
)
MOVE_LINK = Reason(
    "E_MOVE_LINK",
    "the server's folder of runs contains a link or something else that is not a plain file",
    "Replace the link by the file itself, or remove it.",
)
MOVE_WRITE = Reason(
    "E_MOVE_WRITE",
    "a file could not be read or written; incomplete files were removed",
    "Free space on the disk or correct its permissions, then repeat the command.",
)
MOVE_LOST = Reason(
    "E_MOVE_LOST",
    "the written data differs from the archive: {what}; all of it was removed again",
    "The archive is intact, so nothing is lost. Repeat the command; for MLflow's data, use another version of MLflow.",
)
MLFLOW_TAKEN = Reason(
    "E_MLFLOW_TAKEN",
    "this MLflow already has another experiment or model named {name} (it may be a deleted one)",
    "Rename it there (remove a deleted one with mlflow gc), or use a separate MLflow for the study.",
)
MLFLOW_SOURCE = Reason(
    "E_MLFLOW_SOURCE",
    "version {version} of the model {model} in MLflow does not come from a run of its study",
    "Delete that version, or register it again from one of the study's runs.",
)
