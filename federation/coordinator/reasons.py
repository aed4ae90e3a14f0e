"""Reasons why a study does not begin or end."""

from models.refusal import Reason

HANDSHAKE_QUORUM = Reason(
    "E_HANDSHAKE_QUORUM",
    "{present} sites answered before round 1, and the study needs {quorum} in each ({others})",
    "Mend at those sites what their codes say, or wait for them, then start the study again.",
)
SITES_UNLIKE = Reason(
    "E_SITES_UNLIKE",
    "the sites are not alike: {differences}",
    "Version or golden volume: install the server's version of fedthorax and of its libraries at these sites. Data "
    "contract: let the sites agree on [join] and on what severe means in site.toml. Then start the study again.",
)
SERVER_DISK = Reason(
    "E_SERVER_DISK",
    "a file of the run could not be written at the server",
    "Free space on the server's disk or correct its permissions, then resume the study.",
)
SHORTCUT_TAGS = Reason(
    "W_SHORTCUT_TAGS",
    "acquisition tags alone tell {label} at this site: AUROC {auroc}, 95 % interval from {low}",
    "Find out which scanner or protocol goes with the label there; show the figures without that site, or by scanner.",
)
SHORTCUT_OUTSIDE = Reason(
    "W_SHORTCUT_OUTSIDE",
    "the model tells {label} with the lungs blanked out at this site: AUROC {auroc}, 95 % interval from {low}",
    "Do not release it before it is known what the model reads beside the lungs: lines, supports, arms, the scanner.",
)
