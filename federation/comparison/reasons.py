"""Reasons why a run cannot be compared, attacked or released."""

from models.refusal import Reason

CANDIDATE_OTHER = Reason(
    "E_CANDIDATE_OTHER",
    "the model in the run's folder is not the model of its results",
    "Restore the run's folder from the backup of the server's folder, or run the study again.",
)
AUDIT_FLAGS = Reason(
    "E_AUDIT_FLAGS",
    "the audit found reasons to distrust the model: {flags}",
    "Read them in `fedthorax study report RUN`. To release anyway, give --despite-flags a reason; the card shows both.",
)
RELEASE_EXISTS = Reason(
    "E_RELEASE_EXISTS",
    "the folder of the release exists already",
    "A signed release is never changed. Give another folder with --out, or move the existing one away.",
)
RUNS_UNLIKE = Reason(
    "W_RUNS_UNLIKE",
    "the runs differ in {what}, so their metrics are not comparable",
    "Compare runs with the same sites and preprocessing, and synthetic runs only with synthetic runs.",
)
RUN_LEFT_OUT = Reason(
    "W_RUN_LEFT_OUT",
    "{run} has no results to compare: it is {state}",
    "Compare it when it is complete. Resume a stopped run with `fedthorax study resume RUN`.",
)
ATTACK_STUDY = Reason(
    "E_ATTACK_STUDY",
    "the model's network, preprocessing or privacy settings are not those of the study",
    "Give the file of the study that trained this model with --study. A private model requires it.",
)
ATTACK_CONTROL = Reason(
    "E_ATTACK_CONTROL",
    "a control attack that must succeed failed, so the results of {attack} cannot be trusted",
    "Do not conclude that the model is safe; the card says so too. Report it with the versions of fedthorax and torch.",
)
