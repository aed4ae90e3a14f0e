"""Reasons why a run cannot be compared, attacked or released."""

from models.refusal import Reason

CANDIDATE_OTHER = Reason(
    "E_CANDIDATE_OTHER",
    "the model in the run's folder is not the one that its results are about",
    "Bring the run's folder back from the backup of the server's folder, or run the study again.",
)
AUDIT_FLAGS = Reason(
    "E_AUDIT_FLAGS",
    "the audit gave reasons to distrust the model: {flags}",
    "Read them in `fedthorax study report RUN`. --despite-flags with a reason releases it; its card then says both.",
)
RELEASE_EXISTS = Reason(
    "E_RELEASE_EXISTS",
    "there is something at the release's place already",
    "A signed release is never changed: give --out another folder, or move that one away.",
)
RUNS_UNLIKE = Reason(
    "W_RUNS_UNLIKE",
    "the runs differ in {what}, so their figures are not of the same question",
    "Compare runs over the same sites with the same preprocessing, synthetic ones with synthetic ones.",
)
RUN_LEFT_OUT = Reason(
    "W_RUN_LEFT_OUT",
    "{run} has no results to compare: it is {state}",
    "Compare it when it is complete; `fedthorax study resume RUN` goes on with one that was stopped.",
)
ATTACK_STUDY = Reason(
    "E_ATTACK_STUDY",
    "the model's network, preprocessing or privacy are not those of the study",
    "Give --study with the file of the study that made this model; a private model needs it.",
)
ATTACK_CONTROL = Reason(
    "E_ATTACK_CONTROL",
    "an attack that must succeed did not, so the figures of {attack} could not be trusted",
    "Do not read them as safe; the card says so too. Report it with the versions of fedthorax and torch.",
)
