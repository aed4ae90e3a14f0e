"""Reasons what the data contract finds in a whole cohort."""

from models.refusal import Reason

MIRRORED = Reason(
    "W_MIRRORED",
    "in most scans the heart lies on the right",
    "Look at one scan beside the PACS: a conversion may have exchanged left and right.",
)
PRONE = Reason(
    "W_PRONE",
    "the patient lay on the belly or on a side",
    "Nothing to do; dependent densities lie elsewhere than usual.",
)
FEET_FIRST = Reason("W_FEET_FIRST", "the patient went into the scanner feet first", "Nothing to do.")
SMALL_LUNGS = Reason(
    "W_SMALL_LUNGS",
    "the lungs have less than 2 litres",
    "Check that the series was taken in inspiration and covers both lungs.",
)
KERNEL_MIX = Reason(
    "W_KERNEL_MIX",
    "sharp and soft reconstructions are mixed",
    "Choose one kind of reconstruction for all patients, if the PACS has it; sharp ones are noisier.",
)
KERNEL_UNKNOWN = Reason(
    "W_KERNEL_UNKNOWN",
    "the reconstruction kernel is not given or not known here",
    "Nothing to do; it is not known then whether sharp and soft reconstructions are mixed.",
)
SCANNER_MIX = Reason(
    "W_SCANNER_MIX",
    "the scans do not all come from the most common manufacturer",
    "Nothing to do; check that positive and negative patients were scanned alike.",
)
NEAR_DUPLICATE = Reason(
    "W_NEAR_DUPLICATE",
    "two patients' lungs show the same vessels: it may be one scan, reconstructed anew or copied",
    "Look up the patients by their pseudonyms with `fedthorax node find`, and correct the PACS.",
)
REPEATED = Reason(
    "W_REPEATED",
    "the patient was scanned on several days",
    "Nothing to do: the first examination that can be used was taken.",
)
LABEL_YIELD = Reason(
    "W_LABEL_YIELD",
    "most patients with a usable CT have no label",
    "Look at the reasons in the waterfall: export more of the laboratory, or widen the windows in [join].",
)
IDENTIFIERS_DIFFER = Reason(
    "W_IDENTIFIERS_DIFFER",
    "most patients with a usable CT are not in the laboratory's files",
    "Compare how both write an identifier: leading zeros, prefixes, a number of the case instead of the patient.",
)
PREVALENCE = Reason(
    "W_PREVALENCE",
    "nearly all patients have the same label, of PCR or of severity",
    "Export patients with the other result or course too; from one class alone nothing can be learnt.",
)
FEW_IN_SPLIT = Reason(
    "W_FEW_IN_SPLIT",
    "a split has too few patients of a class to be learnt from or tested on",
    "Ingest more patients; with fewer than 5 of each class no figure is stable.",
)
OTHER_SPLIT = Reason(
    "E_OTHER_SPLIT",
    "a patient is in two splits, or in another than the site's key says",
    "Restore keys/pseudonym.key from a backup and ingest again; do not train until then.",
)
OUTCOME_YIELD = Reason(
    "W_OUTCOME_YIELD",
    "of most PCR-positive patients it is not known whether the course was severe",
    "Complete the outcome file, follow-up included.",
)
TOO_FEW_PATIENTS = Reason(
    "E_TOO_FEW_PATIENTS",
    "the site has too few accepted patients to take part: {patients}, and at least {needed} are needed",
    "Ingest more patients; `fedthorax node check` says why others were refused.",
)
