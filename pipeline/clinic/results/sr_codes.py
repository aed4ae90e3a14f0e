"""The codes of the structured report.

Standard codes are used if one has exactly the needed meaning; `99FEDTHORAX` is our own scheme (DICOM PS3.16, 8: the
prefix 99 marks private schemes). No code has the meaning "COVID-19" as a finding: a viewer that shows codes without
their values would state a diagnosis.
"""

from pydicom.sr.coding import Code

SCHEME, SCHEME_NAME = "99FEDTHORAX", "Codes of fedthorax: docs/results.md"


def _own(value: str, meaning: str) -> Code:
    return Code(value, SCHEME, meaning)


PROBABILITIES = {
    "severe": _own("severe", "Probability of intubation or death within 30 days"),
    "pcr_positive": _own("pcr_positive", "Probability of a positive PCR for SARS-CoV-2"),
}
LEVEL = _own("level", "Level of the probability by the model's thresholds")
THRESHOLDS = {
    "rule_out": _own("rule_out", "Threshold below which the level is low"),
    "rule_in": _own("rule_in", "Threshold from which on the level is high"),
}
BAND = (
    _own("band_low", "Lower end of the 95 % band of the calibration"),
    _own("band_high", "Upper end of the 95 % band of the calibration"),
)
SHARES = {
    "ground_glass": _own("ground_glass", "Share of the volume with density of ground glass"),
    "consolidation": _own("consolidation", "Share of the volume with density of consolidation"),
}
COUNTED = {
    "ground_glass": _own("ground_glass_voxels", "Voxels of lung with density of ground glass"),
    "consolidation": _own("consolidation_voxels", "Voxels of lung with density of consolidation"),
}
# Labels of the segments of the segmentation; the report refers to them by these.
LUNGS_SEGMENT = "Lungs"
SEGMENTS = {"ground_glass": "Density of ground glass", "consolidation": "Density of consolidation"}
DISTANCE = _own("distance", "Distance from the scans that the model was trained on")
DISTANCE_LIMIT = _own("distance_limit", "Largest distance at which the model answers")
QUALITY = _own("quality", "Remark on the quality of the scan")

COMMENT = Code("121106", "DCM", "Comment")
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
CT_CHEST = Code("24627-2", "LN", "CT Chest")
ENGLISH = Code("en", "RFC5646", "English")
NO_UNITS = Code("1", "UCUM", "no units")
PERCENT = Code("%", "UCUM", "Percent")
MILLILITRE = Code("mL", "UCUM", "mL")
VOLUME = Code("118565006", "SCT", "Volume")
LUNG = Code("39607008", "SCT", "Lung")
SIDES = {"both": None, "right": Code("24028007", "SCT", "Right"), "left": Code("7771000", "SCT", "Left")}
PARTS = {
    "whole": LUNG,
    "upper": Code("281392002", "SCT", "Upper zone of lung"),
    "middle": Code("281393007", "SCT", "Middle zone of lung"),
    "lower": Code("281394001", "SCT", "Lower zone of lung"),
}
LEVELS = {
    "low": Code("62482003", "SCT", "Low"),
    "intermediate": Code("11896004", "SCT", "Intermediate"),
    "high": Code("75540009", "SCT", "High"),
    "uncertain": Code("64957009", "SCT", "Uncertain"),
}
