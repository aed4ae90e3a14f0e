"""Reasons why an app, a study or a release may not run."""

from models.refusal import Reason

APPROVALS = Reason(
    "E_APPROVALS",
    "approvals.json is damaged, or others than its owner may change it; until it is mended no app runs",
    "Run the node and its commands as the user who owns the site; bring back SITE_DIR/apps from the backup, or move "
    "approvals.json away and approve again.",
)
APPROVALS_BUSY = Reason(
    "E_APPROVALS_BUSY",
    "another command is changing the approvals",
    "Try again in a moment.",
)
APP_ARCHIVE = Reason(
    "E_APP_ARCHIVE",
    "the app is not a readable archive of Flower's (FAB)",
    "Ask whoever made the study for an app that `flwr build` or fedthorax has built.",
)
APP_SIZE = Reason(
    "E_APP_SIZE",
    "the app is larger than {megabytes} MB, packed or unpacked, or has more than {files} files",
    "An app holds code alone: ask whoever made the study for one without data and models.",
)
APP_PATH = Reason(
    "E_APP_PATH",
    "the app holds a link, or two files of one name, or a name that could reach outside its folder",
    "Do not approve it. No honest tool makes such an app: ask whoever sent it.",
)
APP_MANIFEST = Reason(
    "E_APP_MANIFEST",
    "the app's files are not exactly those that its own list (.info/CONTENT) names, with these hashes",
    "Do not approve it; ask whoever made the study for the app as it was built.",
)
APP_PACKING = Reason(
    "E_APP_PACKING",
    "the app's archive is not packed as Flower packs it, so that it could hold bytes that belong to none of its files",
    "Do not approve it; ask whoever made the study for the app as `flwr build` or fedthorax has built it.",
)
APP_SHADOW = Reason(
    "E_APP_SHADOW",
    "the app brings a module named {name}, which would take the place of the one that is installed here",
    "Do not approve it; whoever made the study renames the module, or leaves it out: each site has its own libraries.",
)
APP_TEXT = Reason(
    "E_APP_TEXT",
    "a file of the app is not text in UTF-8, so nobody can read what would run",
    "Ask whoever made the study for an app of sources in UTF-8 alone.",
)
APP_CONFIG = Reason(
    "E_APP_CONFIG",
    "the app's pyproject.toml lacks or spoils what Flower needs: {problem}",
    "Ask whoever made the study to correct it; `flwr build` names what is wrong.",
)
GATEWAY_FAILED = Reason(
    "E_GATEWAY_FAILED",
    "the site's gateway failed, and so let nothing pass",
    "Read the end of logs/gateway.log in the site's folder.",
)
RUN_CONFIG = Reason(
    "E_RUN_CONFIG",
    "the run's configuration is not a study as this release knows it",
    "Install the same version of fedthorax at the site and at the server.",
)
