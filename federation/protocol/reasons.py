"""Reasons why a study, a message or a reply is refused at either end."""

from models.refusal import Reason

SITE_MISSING = Reason(
    "E_SITE_MISSING",
    "the site did not answer in time",
    "The round went on without it; look at the site's node and its log.",
)
SITE_FAILED = Reason(
    "E_SITE_FAILED",
    "the site reported a failure",
    "Its own log holds the details, which do not leave the site.",
)
REPLY_TWICE = Reason(
    "E_REPLY_TWICE",
    "the site answered more than once in one round",
    "None of its answers counts; look at the site's node.",
)
REPLY_RECORDS = Reason(
    "E_REPLY_RECORDS",
    "the reply does not hold exactly the records that were asked for",
    "Install the same version of fedthorax at the site and at the server.",
)
REPLY_KEYS = Reason(
    "E_REPLY_KEYS",
    "the reply names other tensors than the model has",
    "Install the same version of fedthorax at the site and at the server.",
)
REPLY_SHAPE = Reason(
    "E_REPLY_SHAPE",
    "a tensor of the reply has another shape or dtype than the model's",
    "Install the same version of fedthorax at the site and at the server.",
)
REPLY_NOT_FINITE = Reason(
    "E_REPLY_NOT_FINITE",
    "a tensor of the reply holds NaN or infinity",
    "Training diverged at the site: lower the learning rate, and look at the site's cohort.",
)
REPLY_VARIANCE = Reason(
    "E_REPLY_VARIANCE",
    "a variance of the reply is negative",
    "Look at the site's log; such a variance cannot come from data.",
)
REPLY_METRICS = Reason(
    "E_REPLY_METRICS",
    "the reply's metrics are not exactly the finite numbers that were asked for",
    "Install the same version of fedthorax at the site and at the server.",
)
REPLY_EXAMPLES = Reason(
    "E_REPLY_EXAMPLES",
    "the reply's number of examples is not the number of patients that it is over, or beyond the study's limit",
    "Repeat the task if the cohort changed while it ran; else look at the cohort's size and at the study's limit.",
)
UPDATE_NORM = Reason(
    "E_UPDATE_NORM",
    "the length of the site's update is not a finite number",
    "Look at the site's data and at the study's learning rate.",
)
HANDSHAKE = Reason(
    "E_HANDSHAKE",
    "what the site tells of itself is not its version, two hashes and the band of its patients",
    "Install the same version of fedthorax at the site and at the server.",
)
REPLY_LEDGER = Reason(
    "E_REPLY_LEDGER",
    "what the reply says about the site's ledger is not a hash and a number of lines",
    "Install the same version of fedthorax at the site and at the server.",
)
REPLY_LEDGER_CUT = Reason(
    "E_REPLY_LEDGER_CUT",
    "the site's ledger has fewer lines than when it was last told of, or is no longer told of",
    "Ask the site to verify its ledger (fedthorax node ledger --verify). If it restored an older one, begin a new run.",
)
MODEL_NOT_FINITE = Reason(
    "E_MODEL_NOT_FINITE",
    "the replies were finite, but the model made of them is not",
    "Lower the learning rates of strategy and sites, then resume the study.",
)
BEGIN_UNLIKE = Reason(
    "E_BEGIN_UNLIKE",
    "the release that the study begins from has another network or preprocessing, or weights that training does not "
    "make",
    "Give the study the [network] and [preprocessing] of the release's own study, as they stand in its model.json.",
)
BEGIN_UNKNOWN = Reason(
    "E_BEGIN_UNKNOWN",
    "the server has no release of the name that the study begins from",
    "Put the release's folder into SERVER_DIR/releases; begin_from is the SHA-256 that its card.md tells first.",
)
THRESHOLDS = Reason(
    "E_THRESHOLDS",
    "the calibration or the thresholds of a test are not those that the sites' calibrations give",
    "Install the same version of fedthorax at the site and at the server. If they are the same, the server chose them: "
    "ask the study's office why.",
)
EMBEDDINGS = Reason(
    "E_EMBEDDINGS",
    "this site lets no statistics of the network's features out",
    "The audit goes on without this site. To allow them, set embedding_statistics in [gateway] of site.toml.",
)
