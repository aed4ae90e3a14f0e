"""Reasons for which either end refuses a study, a message or a reply."""

from models.refusal import Reason

SITE_MISSING = Reason(
    "E_SITE_MISSING",
    "the site did not answer in time",
    "The round went on without it. Check the site's node and its log.",
)
SITE_FAILED = Reason(
    "E_SITE_FAILED",
    "the site reported a failure",
    "The site's own log holds the details, which do not leave the site.",
)
COMPUTE_NEED = Reason(
    "E_COMPUTE_NEED",
    "the study needs {need}, and this site's processor does not offer it",
    "Choose another processor or precision in [compute] of site.toml; `fedthorax node check` shows what works. "
    "Otherwise this site cannot take part.",
)
SITE_UNLABELLED = Reason(
    "E_SITE_UNLABELLED",
    "the study learns from labels, and this site has chest CT only",
    "Nothing is broken: the study goes on without this site. To take part, give [laboratory] and [outcomes], or "
    "[labels], in site.toml, and ingest again.",
)
REPLY_TWICE = Reason(
    "E_REPLY_TWICE",
    "the site answered more than once in one round",
    "None of its answers counts. Check the site's node.",
)
REPLY_RECORDS = Reason(
    "E_REPLY_RECORDS",
    "the reply does not hold exactly the records that were asked for",
    "Install the same version of fedthorax at the site and at the server.",
)
REPLY_KEYS = Reason(
    "E_REPLY_KEYS",
    "the reply's tensors have other names than the model's",
    "Install the same version of fedthorax at the site and at the server.",
)
REPLY_SHAPE = Reason(
    "E_REPLY_SHAPE",
    "a tensor in the reply has another shape or dtype than the model's",
    "Install the same version of fedthorax at the site and at the server.",
)
REPLY_NOT_FINITE = Reason(
    "E_REPLY_NOT_FINITE",
    "a tensor in the reply holds NaN or infinity",
    "Training diverged at the site. Lower the learning rate, and check the site's cohort.",
)
REPLY_VARIANCE = Reason(
    "E_REPLY_VARIANCE",
    "a variance in the reply is negative",
    "Check the site's log; data cannot produce such a variance.",
)
REPLY_METRICS = Reason(
    "E_REPLY_METRICS",
    "the reply's metrics are not exactly the finite numbers that were asked for",
    "Install the same version of fedthorax at the site and at the server.",
)
REPLY_EXAMPLES = Reason(
    "E_REPLY_EXAMPLES",
    "the reply's number of examples is not the number of patients that it covers, or exceeds the study's limit",
    "Repeat the task if the cohort changed while it ran. Otherwise check the cohort's size and the study's limit.",
)
UPDATE_NORM = Reason(
    "E_UPDATE_NORM",
    "the length of the site's update is not a finite number",
    "Check the site's data and the study's learning rate.",
)
HANDSHAKE = Reason(
    "E_HANDSHAKE",
    "the site's description of itself is not its version, two hashes and the band of its number of patients",
    "Install the same version of fedthorax at the site and at the server.",
)
SITE_OUTDATED = Reason(
    "E_SITE_OUTDATED",
    "the site's version of fedthorax is older than the server accepts: the site must upgrade",
    "Upgrade the node at this hospital (docs/upgrading.md); `fedthorax node upgrade-check` says how. The run goes on "
    "without it. It takes part in the next run, or when this run is resumed.",
)
SERVER_OUTDATED = Reason(
    "E_SERVER_OUTDATED",
    "the site's version of fedthorax is newer than the server's: the server must upgrade",
    "Upgrade the study's server first (docs/upgrading.md), or go back to the server's version at this hospital. The "
    "run goes on without it. It takes part in the next run, or when this run is resumed.",
)
REPLY_LEDGER = Reason(
    "E_REPLY_LEDGER",
    "the reply's description of the site's ledger is not a hash and a number of lines",
    "Install the same version of fedthorax at the site and at the server.",
)
REPLY_LEDGER_CUT = Reason(
    "E_REPLY_LEDGER_CUT",
    "the site's ledger has fewer lines than it last reported, or is no longer reported",
    "Ask the site to verify its ledger (fedthorax node ledger --verify). If it restored an older one, start a new run.",
)
MODEL_NOT_FINITE = Reason(
    "E_MODEL_NOT_FINITE",
    "the replies were finite, but the model computed from them is not",
    "Lower the learning rates of the strategy and the sites, then resume the study.",
)
BEGIN_UNLIKE = Reason(
    "E_BEGIN_UNLIKE",
    "the release that the study starts from has another network or preprocessing, or weights that training cannot "
    "produce",
    "Give the study the [network] and [preprocessing] of the release's own study, as stated in its model.json.",
)
BEGIN_UNKNOWN = Reason(
    "E_BEGIN_UNKNOWN",
    "the server does not have the release that the study starts from",
    "Put the release's folder into SERVER_DIR/releases. begin_from is the SHA-256 at the top of its card.md.",
)
THRESHOLDS = Reason(
    "E_THRESHOLDS",
    "the calibration or the thresholds of a test do not follow from the sites' calibrations",
    "Install the same version of fedthorax at the site and at the server. If they are the same, the server chose other "
    "settings: ask the study's office why.",
)
EMBEDDINGS = Reason(
    "E_EMBEDDINGS",
    "this site does not allow statistics of the network's features to leave",
    "The audit goes on without this site. To allow them, set embedding_statistics in [gateway] of site.toml.",
)
