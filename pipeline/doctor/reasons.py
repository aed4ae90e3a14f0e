"""Reasons that the data contract reports about a whole cohort."""

from models.refusal import Reason

# What a site with chest CT only takes part in.
CT_ONLY_USES = (
    "Studies that learn from labels leave this site out. `fedthorax adapt` and a pretraining can use its scans."
)
MIRRORED = Reason(
    "W_MIRRORED",
    "in most scans the heart is on the right side",
    "Compare one scan with the PACS: a conversion may have swapped left and right.",
)
PRONE = Reason(
    "W_PRONE",
    "the patient lay on the stomach or on one side",
    "No action is needed. Gravity-dependent densities are at unusual places.",
)
FEET_FIRST = Reason(
    "W_FEET_FIRST",
    "the patient entered the scanner feet first",
    "No action is needed.",
)
SMALL_LUNGS = Reason(
    "W_SMALL_LUNGS",
    "the lung volume is less than 2 litres",
    "Check that the series was acquired in inspiration and covers both lungs.",
)
KERNEL_MIX = Reason(
    "W_KERNEL_MIX",
    "sharp and soft reconstructions are mixed",
    "Choose one kind of reconstruction for all patients, if the PACS has it. Sharp ones are noisier.",
)
KERNEL_UNKNOWN = Reason(
    "W_KERNEL_UNKNOWN",
    "the reconstruction kernel is missing or unknown",
    "No action is needed. Whether sharp and soft reconstructions are mixed remains unknown.",
)
SCANNER_MIX = Reason(
    "W_SCANNER_MIX",
    "not all scans come from the most common manufacturer",
    "No action is needed. Check that positive and negative patients were scanned on the same scanners.",
)
NEAR_DUPLICATE = Reason(
    "W_NEAR_DUPLICATE",
    "the lungs of two patients show the same vessels: possibly one scan, copied or reconstructed twice",
    "Look up the patients by their pseudonyms with `fedthorax node find`, and correct the PACS.",
)
REPEATED = Reason(
    "W_REPEATED",
    "the patient was scanned on several days",
    "No action is needed. The first usable examination with a label was taken, or the first one if none has a label.",
)
CT_ONLY = Reason(
    "W_CT_ONLY",
    "the site has chest CT only, so no patient has a label",
    f"No action is needed. {CT_ONLY_USES}",
)
LABEL_YIELD = Reason(
    "W_LABEL_YIELD",
    "most patients with a usable CT have no label",
    "Read the reasons in the waterfall. Export more of the laboratory's results, or widen the windows in [join].",
)
IDENTIFIERS_DIFFER = Reason(
    "W_IDENTIFIERS_DIFFER",
    "most patients with a usable CT are missing in the laboratory's files",
    "Compare how both sources write an identifier: leading zeros, prefixes, or a case number instead of the "
    "patient's number.",
)
IDENTIFIER_SPELLING = Reason(
    "W_IDENTIFIER_SPELLING",
    "patients with a usable CT have no records, but the records contain their identifiers in another spelling",
    "Write identifiers in the same way in both sources: leading zeros, capital letters, spaces, prefixes. Until then "
    "these patients are left out.",
)
PREVALENCE = Reason(
    "W_PREVALENCE",
    "nearly all patients have the same label, of PCR or of severity",
    "Also export patients with the other result or course. A model cannot learn from one class alone.",
)
FEW_IN_SPLIT = Reason(
    "W_FEW_IN_SPLIT",
    "a split has too few patients of one class for training or testing",
    "Ingest more patients. With fewer than 5 patients of each class no metric is stable.",
)
OTHER_SPLIT = Reason(
    "E_OTHER_SPLIT",
    "a patient is in two splits, or not in the split that the site's key determines",
    "Restore keys/pseudonym.key from a backup and ingest again. Do not train before that.",
)
OUTCOME_YIELD = Reason(
    "W_OUTCOME_YIELD",
    "for most PCR-positive patients it is unknown whether the course was severe",
    "Complete the outcome file, including follow-up.",
)
TOO_FEW_PATIENTS = Reason(
    "E_TOO_FEW_PATIENTS",
    "the site has too few accepted patients to take part: {patients}, at least {needed} are needed",
    "Ingest more patients. `fedthorax node check` shows why others were refused.",
)
