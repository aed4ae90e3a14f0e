"""Reasons why a run cannot be compared, attacked or released."""

from models.refusal import Reason

CANDIDATE_OTHER = Reason(
    "E_CANDIDATE_OTHER",
    "the model in the run's folder is not the model of its results",
    "Restore the run's folder from the backup of the server's folder, or run the study again.",
)
AUDIT_FLAGS = Reason(
    "E_AUDIT_FLAGS",
    "there are reasons to doubt the model: {flags}",
    "Read them above or in `fedthorax study report RUN`. To release anyway, give --reason; card and page show both.",
)
NOT_AUDITED = Reason(
    "W_NOT_AUDITED",
    "the shortcut audit was not made: the model may use the scanner instead of the lungs",
    "Set shortcut_audit = true in [evaluation] of the study, and let at least two hospitals answer it. If it is set, "
    "too few hospitals have enough test patients of each class for an AUROC: add hospitals or patients.",
)
AUDIT_IN_PART = Reason(
    "W_AUDIT_IN_PART",
    "the shortcut audit was made in part: the masks show only means over the hospitals, which can hide one hospital's",
    "Read the means in the report. A hospital can score patients of its own with the model, by scanner, and compare.",
)
NOT_JUDGED = Reason(
    "W_NOT_JUDGED",
    "{label} was not calibrated on validation patients, or not judged on test patients",
    "Add hospitals or patients: each class needs enough of them at a site.",
)
AT_CHANCE = Reason(
    "W_AT_CHANCE",
    "{label} may be no better than chance: the 95 % interval of its AUROC is {low} to {high}",
    "Train longer or with more patients, or report the label as not learnt.",
)
SLOPE_FAR = Reason(
    "W_SLOPE_FAR",
    "the probabilities of {label} are not calibrated: their slope on test patients is {slope}, and 1 is ideal",
    "Compare the hospitals' validation and test patients; do not use the probabilities as they are.",
)
SITES_DIFFER = Reason(
    "W_SITES_DIFFER",
    "hospitals differ in {label} more than by chance: AUROC {lowest} to {highest}, chance of this {chance}",
    "Look for the cause in the report, such as a scanner or a laboratory, before anybody scores with it.",
)
SITES_SPREAD = Reason(
    "W_SITES_SPREAD",
    "hospitals differ in {label} more than by chance: their AUROCs deviate by {deviation} from their mean {mean}, "
    "{by_chance} would be chance (chance of this {chance})",
    "The masks hide which of them differ. Ask the hospitals to score patients of their own with it, and compare.",
)
RELEASE_EXISTS = Reason(
    "E_RELEASE_EXISTS",
    "the folder of the release exists already",
    "A signed release is never changed. Give another folder with --out, or move the existing one away.",
)
RUNS_UNLIKE = Reason(
    "W_RUNS_UNLIKE",
    "the runs differ in {what}, so their metrics are not comparable",
    "Compare runs with the same sites, labels' rules and preprocessing, and synthetic runs only with synthetic runs.",
)
RUNS_UNPAIRED = Reason(
    "W_RUNS_UNPAIRED",
    "the test patients of {sites} differ between the runs, so there is no difference for them",
    "Repeat the older run: a cohort keeps its test patients as long as it is not ingested again.",
)
RUNS_MASKED = Reason(
    "W_RUNS_MASKED",
    "{runs}: the server knows only sums over the hospitals, so no difference is paired by hospital",
    "Where there is an interval over patients, it holds for any likeness of the two models. Or use three seeds each. A "
    "hospital takes part in one masked run of a seed only, so the two need different seeds.",
)
RUN_NO_FIGURES = Reason(
    "W_RUN_NO_FIGURES",
    "{run} has results, but no figure to compare: {why}",
    "See `fedthorax study show RUN`. More patients or hospitals are needed for figures of the final model.",
)
RUN_LEFT_OUT = Reason(
    "W_RUN_LEFT_OUT",
    "{run} has no results to compare; its state: {state}",
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
