"""Reasons for which an app, a study or a release may not run."""

from models.refusal import Reason

APPROVALS = Reason(
    "E_APPROVALS",
    "approvals.json is damaged, or other users may change it; no app runs until this is corrected",
    "Run the node and its commands as the user who owns the site. Restore SITE_DIR/apps from a backup, or move "
    "approvals.json away and approve the apps again.",
)
APPROVALS_BUSY = Reason(
    "E_APPROVALS_BUSY",
    "another command is changing the approvals",
    "Try again in a moment.",
)
APP_ARCHIVE = Reason(
    "E_APP_ARCHIVE",
    "the app is not a readable app archive of Flower (FAB)",
    "Ask the study's author for an app that was built with `flwr build` or fedthorax.",
)
APP_SIZE = Reason(
    "E_APP_SIZE",
    "the app is larger than {megabytes} MB, packed or unpacked, or has more than {files} files",
    "An app should hold only code: ask the study's author for an app without data and models.",
)
APP_PATH = Reason(
    "E_APP_PATH",
    "the app contains a link, two files of one name, or a file name that could point outside its folder",
    "Do not approve it. No honest tool makes such an app: ask its sender.",
)
APP_MANIFEST = Reason(
    "E_APP_MANIFEST",
    "the app's files do not match its own file list (.info/CONTENT) and the hashes there",
    "Do not approve it. Ask the study's author for the app exactly as it was built.",
)
APP_PACKING = Reason(
    "E_APP_PACKING",
    "the app's archive is not packed as Flower packs it, so it could contain bytes that belong to none of its files",
    "Do not approve it. Ask the study's author for the app exactly as `flwr build` or fedthorax built it.",
)
APP_SHADOW = Reason(
    "E_APP_SHADOW",
    "the app contains a module named {name}, which would replace the one that is installed here",
    "Do not approve it. The study's author must rename or remove the module: each site uses its own libraries.",
)
APP_TEXT = Reason(
    "E_APP_TEXT",
    "a file of the app is not UTF-8 text, so nobody can review what would run",
    "Ask the study's author for an app that contains only UTF-8 source files.",
)
APP_CONFIG = Reason(
    "E_APP_CONFIG",
    "the app's pyproject.toml lacks a value that Flower needs, or it is invalid: {problem}",
    "Ask the study's author to correct it; `flwr build` reports what is wrong.",
)
GATEWAY_FAILED = Reason(
    "E_GATEWAY_FAILED",
    "the site's gateway failed, and therefore let nothing pass",
    "Read the end of logs/gateway.log in the site's folder.",
)
RUN_CONFIG = Reason(
    "E_RUN_CONFIG",
    "the run's configuration is not a valid study of this release",
    "Install the same version of fedthorax at the site and at the server.",
)
SECAGG_NO_LIST = Reason(
    "W_SECAGG_NO_LIST",
    "this site requires masked studies, and no list of hospitals is approved: it refuses every round",
    "Compare the code of `fedthorax node peers` with the other hospitals, then approve it with `node approve-peers`.",
)
SECAGG_NO_KEY = Reason(
    "W_SECAGG_NO_KEY",
    "the key of this site's gateway for masked rounds is missing",
    "Restore keys/secagg from a backup. Otherwise the node makes a new one, and all hospitals approve a new list.",
)
SECAGG_KEY_OPEN = Reason(
    "W_SECAGG_KEY_OPEN",
    "other users can read the key of this site's gateway for masked rounds",
    "chmod 600 keys/secagg. If somebody may have read it, delete it, and all hospitals approve a new list.",
)
SECAGG_NO_MEMORY = Reason(
    "W_SECAGG_NO_MEMORY",
    "the keys of a round cannot be kept in memory, because /dev/shm cannot be written; they would be on a disk",
    "Let the node's user write to /dev/shm, or leave the system's temporary folder out of all backups.",
)
NETWORK_REFUSED = Reason(
    "E_NETWORK_REFUSED",
    "a package that the study uses is not approved at this site",
    "Install the package beside the node, read it and approve it with `fedthorax node approve-network`.",
)
ENCODER_REFUSED = Reason(
    "E_ENCODER_REFUSED",
    "the encoder of the study is not approved at this site",
    "Get the encoder's folder, find out where its weights come from, and approve it with `fedthorax node "
    "approve-encoder`.",
)
ENCODER_LEARNT = Reason(
    "E_ENCODER_LEARNT",
    "the study promises differential privacy, and its encoder learnt from this hospital's patients without it",
    "Use an encoder that learnt elsewhere, or a study without [privacy], which promises nothing.",
)
NETWORK_CHANGED = Reason(
    "E_NETWORK_CHANGED",
    "the files of an approved package were changed or deleted after its approval, and do not run",
    "Find out who changed SITE_DIR/networks. Restore it from a backup, or approve the package again.",
)
