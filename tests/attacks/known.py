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
    "invented calibrations, 16 tests": (
        "no gateway can verify what other hospitals answered. But most of it comes from the models: heads on age and "
        "sex alone make each figure a count of patients, in steps of three. Many such counts tell small groups."
    ),
    "thresholds of the hospital's own calibration, 16 tests": (
        "the same with nothing invented. So a bound on what others may have answered would stop little; fewer tests, "
        "coarser figures or noise would stop more."
    ),
    "invented calibrations, all patients but one known": (
        "who knows all test patients but one works out what each figure would be with any row in that one's place."
    ),
    "invented calibrations, before and after one patient": (
        "tests over almost the same patients are answered: the row that fits both answers best is often the new one."
    ),
    "typical looks of a known scan, one calibration": (
        "the gateway cannot verify what is typical elsewhere. A least distance and coarse figures bound what one "
        "patient changes; among 24 he still shows at times. `embedding_statistics = false` stops it."
    ),
    "typical looks of a known scan and beside it, five calibrations": (
        "the same, compared with typical looks on either side of the scan."
    ),
    "a gateway's folder from a backup": (
        "whoever can put an older copy of the gateway's folder in its place sets the counters of rounds and "
        "questions back. A server cannot; the ledger shows it."
    ),
    "bits hidden in low bits of weights of train": (
        "nothing bounds what a hostile app hides in the weights of its reply; see above under Weights."
    ),
}
