"""Reasons why a study does not start or does not finish."""

from models.refusal import Reason

HANDSHAKE_QUORUM = Reason(
    "E_HANDSHAKE_QUORUM",
    "too few sites answered before round 1 ({present}); the study needs {quorum} in each round ({others})",
    "Fix the causes that the sites' codes name, or wait for the sites, then start the study again.",
)
SITES_UNLIKE = Reason(
    "E_SITES_UNLIKE",
    "the sites do not agree: {differences}",
    "Golden volume: install the server's versions of fedthorax and of its libraries at these sites. Data "
    "contract: agree on [join] and on the definition of severe in site.toml. Then start the study again.",
)
NOTHING_LEARNT = Reason(
    "E_NOTHING_LEARNT",
    "no round of the run counts ({codes}): its model is still the one it began from",
    "There is no candidate. Remove the causes that the lines of the rounds name, then run the study again.",
)
SERVER_DISK = Reason(
    "E_SERVER_DISK",
    "a file of the run could not be written at the server",
    "Free space on the server's disk or correct its permissions, then resume the study.",
)
MODEL_REJECTED = Reason(
    "E_MODEL_REJECTED",
    "{worse} of {voters} hospitals that vote find the model much worse than the ones before",
    "The study went back to the last model that they accepted. A hospital may spoil the model, or the learning rate is "
    "too high. If this happens again, end the study, and run it with a list without one hospital at a time until it no "
    "longer happens.",
)
BASELINE_UNLIKE = Reason(
    "E_BASELINE_UNLIKE",
    "a baseline is trained from the study's seed, and without protection, but the study file has {what}",
    "Train it with a copy of the file without these lines. For tuned stages of an encoder, set pooled = true in "
    "[evaluation] and run the study as a simulation.",
)
SHORTCUT_TAGS = Reason(
    "W_SHORTCUT_TAGS",
    "acquisition tags alone predict {label} at {where}: AUROC {auroc}, 95 % interval from {low}",
    "Find out which scanner or protocol goes with the label there. Report results without that site, or by scanner.",
)
SHORTCUT_OUTSIDE = Reason(
    "W_SHORTCUT_OUTSIDE",
    "the model predicts {label} with the lungs blanked out at {where}: AUROC {auroc}, 95 % interval from {low}",
    "Do not release it until you know what it reads outside the lungs, such as lines, supports, arms or the scanner.",
)
