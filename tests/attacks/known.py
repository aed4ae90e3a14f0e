"""What hostile servers still learn: the attacks that may succeed, by name, each with its reason. No other may."""

from collections.abc import Mapping

KNOWN: Mapping[str, str] = {
    "head gating, default settings": (
        "heads that are a hundred times as long as the seed's are let in, as long as they grow from round to "
        "round. They make an update a count of patients in a group of age and sex. The order of patients, "
        "which the server does not know, blurs each count, and more messages make the counts sharper. Fewer "
        "rounds a day (`max_rounds_a_day`) make it slower; differential privacy alone bounds it."
    ),
    "head gating, steps over all patients": (
        "where each step is over all patients, nothing blurs the counts. No study of the release is like "
        "this; a person at the hospital would have to approve it, against `fedthorax node studies`."
    ),
    "thresholds on the scan in the last layer, default settings": (
        "the update of a head on thresholds of a scan's measure depends on how many patients of which label lie above "
        "each. Little is told: at simulated hospitals the decoder is right of 75 % of the patients where guessing "
        "is of 69 %, and passes the level of this table in half of the trials with five hospitals. "
        "What it tells are counts; augmentation and the batches blur them."
    ),
    "one patient more: means of looks before and after": (
        "answers over two cohorts that differ by one patient tell how its scan looks (51 numbers, no image). "
        "A hospital that does not want this sets `embedding_statistics = false`, or ingests patients in "
        "groups."
    ),
    "a gateway's folder from a backup": (
        "whoever can put an older copy of the gateway's folder in its place sets the counters of rounds and "
        "questions back. A server cannot; the ledger shows it."
    ),
    "bits hidden in low bits of weights of train": (
        "nothing bounds what a hostile app hides in the weights of its reply; see above under Weights."
    ),
}
