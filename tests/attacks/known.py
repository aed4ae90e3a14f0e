"""What hostile servers can still learn: by name, the only attacks that may succeed, each with its reason."""

from collections.abc import Mapping

KNOWN: Mapping[str, str] = {
    "head gating, steps over all patients": (
        "if each step is over all patients, nothing blurs the counts. No study of the release is like this; a person "
        "at the hospital would have to approve it, against the warning of `fedthorax node studies`."
    ),
    "thresholds on the scan in the last layer, default settings": (
        "the update of a head on thresholds of a measure of the scan depends on how many patients with which label are "
        "above each threshold. It reveals counts, and only inaccurate ones, because augmentation and batches blur them."
    ),
    "updates of a head on a frozen encoder, default settings": (
        "only without sums: the server computes the features that each scan has, and compares them with each update. "
        "Sums of three hospitals reveal it too, but less; see docs/encoders.md."
    ),
    "updates of a head on a frozen encoder, scans of all patients": (
        "the same, for a server that has the scans of all patients of a hospital and does not know who of them trained."
    ),
    "losses of 25 rounds on validation patients": (
        "with heads on age and sex alone, a mean loss is a linear equation in the number of patients of each kind. In "
        "the studies that site.toml approves by default these figures leave only in sums; so do the answers below."
    ),
    "invented calibrations, 16 tests": (
        "only without sums: no gateway can verify the answers of other hospitals. But the models reveal most of it: "
        "with heads on age and sex alone, each figure is a count of patients, in steps of three. Many such counts "
        "reveal small groups."
    ),
    "thresholds of the hospital's own calibration, 16 tests": (
        "only without sums: the same without invented answers. So a bound on the answers of others would stop little."
    ),
    "invented calibrations, all patients but one known": (
        "only without sums: a server that knows all test patients but one can compute each figure for every possible "
        "row of that patient."
    ),
    "invented calibrations, before and after one patient": (
        "only without sums: tests over almost the same patients are answered, and the row that fits both answers best "
        "is often the new one."
    ),
    "typical appearance of a known scan, one calibration": (
        "only without sums: the gateway cannot verify the typical appearance at other hospitals. A minimum distance "
        "and coarse figures limit the effect of one patient; among 24 patients it is still visible at times. "
        "`embedding_statistics = false` stops it."
    ),
    "typical appearance of a known scan and beside it, five calibrations": (
        "only without sums: the same, compared with a typical appearance on either side of the scan."
    ),
    "bits hidden in low bits of weights of train": (
        "nothing bounds what a hostile app hides in the weights of its reply; see the section Weights above."
    ),
}
