"""Reasons why a volume is no scan of a whole adult chest."""

from models.refusal import Reason

NO_LUNGS = Reason(
    "E_NO_LUNGS",
    "no lungs were found: this is not a chest CT",
    "Choose the chest CT series of the examination.",
)
NOT_A_WHOLE_CHEST = Reason(
    "E_NOT_A_WHOLE_CHEST",
    "not a whole chest: {lungs_ml} mL of lung over {length_mm} mm",
    "Choose the series that covers both lungs from apex to base.",
)
AIR_HU_REFUSED = Reason(
    "E_AIR_HU",
    "the air around the patient has {air_hu} HU instead of -1000: the values are not Hounsfield units",
    "Export the original series; the rescale of this one is wrong, or it was converted.",
)
TISSUE_HU = Reason(
    "E_TISSUE_HU",
    "{soft} % of the body has the density of soft tissue and {muscle} % that of muscle: the values are not Hounsfield "
    "units",
    "Export the original CT series; the rescale of this one is wrong, it was converted, or it is no CT.",
)
NOISE = Reason(
    "E_NOISE",
    "the scan is too noisy: {noise_hu} HU in soft tissue after averaging",
    "Take another reconstruction of the scan, if there is one.",
)
NOT_LUNG = Reason(
    "E_NOT_LUNG",
    "what lies in the place of the lungs has {lung_hu} HU, which no lung has",
    "Choose the chest CT series of the examination; gas in the bowel was taken for lung, or the values are wrong.",
)
METAL_REFUSED = Reason(
    "E_METAL",
    "{metal_ml} mL of metal lie in the chest, and its streaks go through the lungs",
    "Read the scan without a score; a reconstruction that takes metal out changes the lungs beside it.",
)
LUNGS_CUT_REFUSED = Reason(
    "E_LUNGS_CUT",
    "the lungs are cut off: their section at an end of the scan is {percent} % of the widest",
    "Choose the series that covers both lungs from apex to base.",
)
TURNED_REFUSED = Reason(
    "E_TURNED",
    "the body lies otherwise than the header says: the spine in front, or the windpipe below",
    "Export the original series; a conversion has turned this one over.",
)
MIRRORED_REFUSED = Reason(
    "E_MIRRORED",
    "heart and stomach lie on the right: left and right were exchanged, or the patient is unlike those of the training",
    "Compare the scan with the PACS. If they do lie on the right, read the scan without a score.",
)
AIR_HU = Reason(
    "W_AIR_HU",
    "the air around the patient is not near -1000 HU",
    "Have the scanner's calibration looked at, or export the original series: the values may have been converted.",
)
TURNED = Reason(
    "W_TURNED",
    "the body lies otherwise than the header says: the spine in front, or the windpipe below",
    "Export the original series; a conversion may have turned it over.",
)
LUNGS_CUT = Reason(
    "W_LUNGS_CUT",
    "the lungs reach the first or the last slice: part of them may lie outside the scan",
    "Check that the series covers both lungs; take a longer one, if there is one.",
)
HU_SHIFT = Reason(
    "W_HU_SHIFT",
    "the lungs are darker or denser than usual, by more than the preparation evens out",
    "Look for emphysema, a very deep or shallow breath, an unusual kernel or a wrong calibration.",
)
