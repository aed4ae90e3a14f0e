"""Reasons why a release cannot be made, verified or installed. install.sh prints those that begin with E_INSTALL."""

from models.refusal import Reason

TREE_CHANGED = Reason(
    "E_TREE_CHANGED",
    "the source has changes that are in no commit, so nobody could build this release again",
    "Commit them, or remove them: `git status` lists them.",
)
BUILD_FAILED = Reason(
    "E_BUILD_FAILED",
    "{step} failed",
    "Read the output above. A missing package: `make release` needs the extra `release` and, for the viewer, npm.",
)
LOCK_NO_WHEEL = Reason(
    "E_LOCK_NO_WHEEL",
    "{library} has no wheel for Python {python} on Linux x86_64",
    "Give another version of it in constraints.txt, then run `make lock` again.",
)
