"""Reasons why a release is not adapted to a hospital."""

from models.refusal import Reason

ADAPT_PARENT = Reason(
    "E_ADAPT_PARENT",
    "this release cannot be adapted: {problem}",
    "Adapt a release that `fedthorax study release` made, with a limit for unfamiliar scans. It stays the parent of "
    "every adaptation: an adapted release is not adapted again.",
)
ADAPT_UNSIGNED = Reason(
    "E_ADAPT_UNSIGNED",
    "no public key was given that must have signed the release to adapt",
    "Give the study's public key (.pub) with --signed-by, or a folder with it in FEDTHORAX_RELEASE_KEYS.",
)
ADAPT_TOO_FEW = Reason(
    "E_ADAPT_TOO_FEW",
    "the site has too few usable scans without a label ({scans}); {needed} are needed: with fewer, the error of the "
    "new statistics is as large as the shifts that they should follow",
    "Set unlabelled_patients = true in [site], add scans, run `fedthorax node ingest`, then run the command again.",
)
ADAPT_UNFAMILIAR = Reason(
    "E_ADAPT_UNFAMILIAR",
    "{unfamiliar} of the site's {scans} scans without a label are outside the release's limit for unfamiliar scans; at "
    "most {percent} % may be",
    "Find out what differs: docs/familiarity.md. A release whose hospitals have such scanners is the remedy, not an "
    "adaptation.",
)
ADAPT_WORSE = Reason(
    "E_ADAPT_WORSE",
    "on the site's own labelled validation patients the adapted model is worse for {label}: {figure} changed by "
    "{change} (95 % interval {low} to {high})",
    "Use the parent as it is. Nothing was written.",
)
ADAPT_EXISTS = Reason(
    "E_ADAPT_EXISTS",
    "the folder of the derived release, or its .pub file, exists already",
    "Give another folder with --out. A derived release is never changed.",
)
ADAPT_CHANGED = Reason(
    "E_ADAPT_CHANGED",
    "a patient left the cohort, or a scan was prepared again, while the release was adapted",
    "Run the command again. Nothing was written.",
)
