"""Reasons why a run cannot be launched, followed or read."""

from models.refusal import Reason

MLFLOW_SILENT = Reason(
    "E_MLFLOW_SILENT",
    "MLflow does not answer, or does not have all of the runs' figures yet",
    "Set MLFLOW_TRACKING_URI, and its user and password if it asks for them, as the server has them; start the "
    "tracking server that it names; then repeat the command.",
)
RESULTS = Reason(
    "E_RESULTS",
    "the run has no results yet, or another version's",
    "They are written when the last round is over: fedthorax study show RUN. A run that was stopped can be resumed.",
)
RUN_FILES = Reason(
    "E_RUN_FILES",
    "{file} of the run is damaged, or another version's",
    "Bring it back from the backup of the server's folder, or use the release of fedthorax that wrote it.",
)
RUN_UNDER_WAY = Reason(
    "E_RUN_UNDER_WAY",
    "the run is under way",
    "Watch it with `fedthorax study follow RUN`, or end it with `fedthorax study stop RUN`.",
)
RUN_ENDED = Reason(
    "E_RUN_ENDED",
    "the run is not under way: it is {state}",
    "`fedthorax study show RUN` tells what it found; `fedthorax study resume RUN` goes on with one that was stopped.",
)
TRACKING_SILENT = Reason(
    "W_TRACKING_SILENT",
    "MLflow does not answer; what it is to have waits",
    "Start MLflow again: what waits is handed over with the next round, or with the next run on this server.",
)
TRACKING_ACCESS = Reason(
    "W_TRACKING_ACCESS",
    "MLflow does not let this user in; what it is to have waits",
    "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where the server is started, and let the user write to "
    "the study's experiment and model.",
)
NO_SITES = Reason(
    "E_NO_SITES",
    "a simulation needs at least one site folder, and each must exist",
    "Give the folders that fedthorax node init made.",
)
RUN_FAILED = Reason(
    "E_RUN_FAILED",
    "the run {run} ended as {status}",
    "Read what it said above; mend that, then go on with `fedthorax study resume`.",
)
