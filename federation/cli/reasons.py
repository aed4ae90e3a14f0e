"""Reasons why a command cannot do what it was asked."""

from models.refusal import Reason

STUDY_EXISTS = Reason(
    "E_STUDY_EXISTS",
    "{file} is there already",
    "Give another name, or move it away first: a study that was run belongs to its figures.",
)
APP_UNKNOWN = Reason(
    "E_APP_UNKNOWN",
    "no app is known here by this hash, and no file or folder has this name",
    "`fedthorax node apps SITE_DIR` lists the apps; give a hash (8 digits or more), a .fab file or an app's folder.",
)
APP_AMBIGUOUS = Reason(
    "E_APP_AMBIGUOUS",
    "{count} apps have hashes that begin so",
    "Give more digits of the hash.",
)
RELEASE_UNKNOWN = Reason(
    "E_RELEASE_UNKNOWN",
    "no release with this name is known at this site",
    "`fedthorax node releases` lists those that were decided on, by their SHA-256.",
)
STUDY_UNKNOWN = Reason(
    "E_STUDY_UNKNOWN",
    "no study with this name or digest is known at this site",
    "`fedthorax node studies` lists those that were asked for; a study file can be given too.",
)
STUDY_AMBIGUOUS = Reason(
    "E_STUDY_AMBIGUOUS",
    "{count} studies begin with these digits",
    "Give more digits of the digest.",
)
