"""Reasons why a run cannot be launched, followed or read."""

from models.refusal import Reason

MLFLOW_SILENT = Reason(
    "E_MLFLOW_SILENT",
    "MLflow is not responding, or does not have all of the runs' metrics yet",
    "Set MLFLOW_TRACKING_URI, and user and password if needed, to the server's values. Start that tracking server. "
    "Then repeat the command.",
)
RESULTS = Reason(
    "E_RESULTS",
    "the run has no results yet, or their format is of another version",
    "Results are written after the last round. See the state with fedthorax study show RUN; resume a stopped run.",
)
RUN_FILES = Reason(
    "E_RUN_FILES",
    "{file} of the run is damaged, or its format is of another version",
    "Restore it from the backup of the server's folder, or use the release of fedthorax that wrote it.",
)
RUN_UNDER_WAY = Reason(
    "E_RUN_UNDER_WAY",
    "the run is still active",
    "Follow it with `fedthorax study follow RUN`, or stop it with `fedthorax study stop RUN`.",
)
RUN_COMPLETE = Reason(
    "E_RUN_COMPLETE",
    "the run is complete; resuming it would ask every hospital the last questions again",
    "Show its results with `fedthorax study show RUN`. To train again, start a run with another seed.",
)
RUN_ENDED = Reason(
    "E_RUN_ENDED",
    "the run is not active: it is {state}",
    "Show its results with `fedthorax study show RUN`, or resume a stopped run with `fedthorax study resume RUN`.",
)
LEDGER_UNKNOWN = Reason(
    "E_LEDGER_UNKNOWN",
    "the run knows no line of this site's ledger, so there is nothing to accept",
    "Check the site's name with `fedthorax study show RUN`. A cut that was accepted needs no second decision.",
)
TRACKING_SILENT = Reason(
    "W_TRACKING_SILENT",
    "MLflow is not responding; its data is queued and uploaded later",
    "Start MLflow again. The queued data is uploaded with the next round, or with the next run on this server.",
)
TRACKING_ACCESS = Reason(
    "W_TRACKING_ACCESS",
    "MLflow denies access to this user; its data is queued and uploaded later",
    "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where the server is started, and give the user write "
    "access to the study's experiment and model.",
)
TRACKING_REFUSED = Reason(
    "W_TRACKING_REFUSED",
    "MLflow does not accept the data of the run {run}; it is queued",
    "If the run or its experiment was deleted in MLflow, restore it there: the queued data is uploaded with the next "
    "round, or with the next run on this server. Otherwise delete tracking.jsonl in the run's folder, which has all "
    "results.",
)
TRACKING_DAMAGED = Reason(
    "W_TRACKING_DAMAGED",
    "a part of what the run {run} queued for MLflow is damaged and was left out",
    "Nothing to do: MLflow lacks some of its metrics or files, the run's folder has all of them.",
)
TRACKING_NO_MODEL = Reason(
    "W_TRACKING_NO_MODEL",
    "the candidate of the run {run} is not in its folder any more; its registration in MLflow is queued",
    "Restore the folder `release` of the run from the server's backup, or delete tracking.jsonl in the run's folder if "
    "nobody needs this model.",
)
NO_SITES = Reason(
    "E_NO_SITES",
    "a simulation needs at least one site folder, and each must exist",
    "Give folders that fedthorax node init created.",
)
RUN_STOPPED = Reason(
    "E_RUN_STOPPED",
    "the run {run} was stopped",
    "Somebody ran `fedthorax study stop`. Continue it with `fedthorax study resume`.",
)
RUN_FAILED = Reason(
    "E_RUN_FAILED",
    "the run {run} ended as {status}",
    "Read the messages above and fix the cause. Then `fedthorax study resume RUN` goes on with it, as long as the "
    "study and its packages stay as they are. To change them, start another run: `fedthorax study run`.",
)
UPDATES_SEEN = Reason(
    "W_UPDATES_SEEN",
    "{strategy} is a mean, and this study has no masks: the server sees each hospital's update",
    'Set secure = true in [aggregation] (fedthorax study init FILE --preset masked), or name = "CenteredClip" in '
    "[strategy], which uses what the server sees to stop a hostile hospital. See docs/choosing-protection.md.",
)
SITE_LIMITS = Reason(
    "W_SITE_LIMITS",
    "each hospital is asked for more than site.toml allows by default: {asked}",
    "Ask the hospitals which limits they have, and to raise them in [gateway] of site.toml if need be; else they "
    "refuse the rest. Or run fewer seeds at a time, or compare fewer hospitals (compared_sites in [evaluation]). Only "
    "max_sum_changes counts all runs of a study for ever: then run fewer seeds in all.",
)
TRAINED_LONG = Reason(
    "W_TRAINED_LONG",
    "the validation loss of {label} was lowest near round {rounds} ({lowest}) and rose to {last}: the model learns its "
    "training patients by heart",
    "Run the study again with about so many rounds, and compare the two runs for each label: another one may lose.",
)
SEED_USED = Reason(
    "E_SEED_USED",
    "a run of seed {seed} would repeat a model of {other}, and hospitals reveal a sum about a model only once",
    "Choose another seed, also for another strategy. A run that begins from a release needs a release of its own.",
)
