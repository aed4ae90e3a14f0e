"""What hostile servers still learn: the attacks that may succeed, by name, each with its reason. No other may."""

from collections.abc import Mapping

KNOWN: Mapping[str, str] = {
    "head gating, steps over all patients": (
        "where each step is over all patients, nothing blurs the counts. No study of the release is like "
        "this; a person at the hospital would have to approve it, against `fedthorax node studies`."
    ),
    "thresholds on the scan in the last layer, default settings": (
        "the update of a head on thresholds of a scan's measure depends on how many patients of which label lie above "
        "each. What it tells are counts, and little of them; augmentation and the batches blur them."
    ),
    "a gateway's folder from a backup": (
        "whoever can put an older copy of the gateway's folder in its place sets the counters of rounds and "
        "questions back. A server cannot; the ledger shows it."
    ),
    "bits hidden in low bits of weights of train": (
        "nothing bounds what a hostile app hides in the weights of its reply; see above under Weights."
    ),
}
