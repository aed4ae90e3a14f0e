"""Reasons about the files and folders of a site, a server or a clinic as such."""

from models.refusal import Reason

FORMAT_NEWER = Reason(
    "E_FORMAT_NEWER",
    "{file} was written by a newer version of fedthorax: it has format {found}, and this version knows formats up to "
    "{known}",
    "Install the newer version again. To go back to this one, run `upgrade-undo` of the newer version first "
    "(docs/upgrading.md). Nothing was changed.",
)
NO_WAY_BACK = Reason(
    "E_NO_WAY_BACK",
    "there is no copy from before an upgrade to go back to",
    "No file was migrated here, so the older version opens the folder as it is: install it. Otherwise restore a "
    "backup.",
)
COPY_DAMAGED = Reason(
    "E_COPY_DAMAGED",
    "the copy of {file} from before the upgrade is damaged",
    "Nothing was changed. Restore a backup that the older version made, or stay with this version.",
)
WORKER_DIED = Reason(
    "E_WORKER_DIED",
    "the system ended one of the processes that do this command's work, most likely because memory ran out",
    "Free memory and run the command again. Series that were read so far are kept.",
)
