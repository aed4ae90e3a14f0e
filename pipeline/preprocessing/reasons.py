"""Reasons why a volume is refused or flagged: it does not show a whole adult chest in Hounsfield units."""

from models.refusal import Reason

NO_LUNGS = Reason(
    "E_NO_LUNGS",
    "no whole lungs were found: this is not a chest CT, or its images cut through the lungs",
    "Choose the chest CT series of the examination, one that shows the whole wall of the chest.",
)
NOT_A_WHOLE_CHEST = Reason(
    "E_NOT_A_WHOLE_CHEST",
    "the scan does not show a whole adult chest: it holds {lungs_ml} mL of lung over a length of {length_mm} mm",
    "Choose the series that covers both lungs from apex to base.",
)
NO_AIR = Reason(
    "E_NO_AIR",
    "no voxel has the HU of lung or air: the values are not Hounsfield units",
    "RescaleIntercept is probably wrong. Export the original series again.",
)
FIELD_OF_VIEW = Reason(
    "E_FIELD_OF_VIEW",
    "the images are {width_mm} mm wide, too small for a chest",
    "The unit of PixelSpacing may be wrong: DICOM states millimetres. Otherwise choose the series of the whole chest.",
)
PROPORTIONS = Reason(
    "E_PROPORTIONS",
    "the lungs are {height_mm} mm tall and {width_mm} mm wide: slice positions are wrong, or scans were joined",
    "Compare the positions of the slices with the PACS, and give the images of one patient only.",
)
LUNGS_FLAT = Reason(
    "W_LUNGS_FLAT",
    "the lungs are unusually low for their width",
    "Check in the pictures that the proportions of the chest are right. Very small lungs look alike.",
)
AIR_HU_REFUSED = Reason(
    "E_AIR_HU",
    "the air around the patient has {air_hu} HU instead of -1000: the values are not Hounsfield units",
    "Export the original series. The rescale values of this series are wrong, or it was converted.",
)
TISSUE_HU = Reason(
    "E_TISSUE_HU",
    "{soft} % of the body has the density of soft tissue and {muscle} % that of muscle: the values are not Hounsfield "
    "units",
    "Export the original CT series. The rescale values of this series are wrong, it was converted, or it is not CT.",
)
NOISE = Reason(
    "E_NOISE",
    "the scan is too noisy: the noise in soft tissue is {noise_hu} HU after averaging",
    "Use another reconstruction of the scan, if there is one.",
)
NOT_LUNG = Reason(
    "E_NOT_LUNG",
    "the region found as lungs is no lung: its median is {lung_hu} HU, and {gas} % of the air in it is as thin as the "
    "air around the patient",
    "Choose the chest CT series of the examination. Gas in the bowel was taken for lung, or the values are wrong.",
)
METAL_REFUSED = Reason(
    "E_METAL",
    "the chest contains {metal_ml} mL of metal, which causes streaks across the lungs",
    "Read the scan without a score. A reconstruction that removes metal also changes the lungs beside it.",
)
LUNGS_CUT_REFUSED = Reason(
    "E_LUNGS_CUT",
    "the lungs are cut off: their area at an end or a side of the scan is {percent} % of their largest area",
    "Choose the series that shows both lungs whole, from apex to base and from wall to wall.",
)
TURNED_REFUSED = Reason(
    "E_TURNED",
    "the body is not oriented as the header says: the spine is in front, or the trachea is below",
    "Export the original series. A conversion has flipped this one.",
)
MIRRORED_REFUSED = Reason(
    "E_MIRRORED",
    "heart and stomach are on the right: left and right were exchanged, or the anatomy is unlike the training data",
    "Compare the scan with the PACS. If heart and stomach are on the right there too, read the scan without a score.",
)
AIR_HU = Reason(
    "W_AIR_HU",
    "the air around the patient is not near -1000 HU",
    "Have the scanner's calibration checked, or export the original series: the values may have been converted.",
)
TURNED = Reason(
    "W_TURNED",
    "the body is not oriented as the header says: the spine is in front, or the trachea is below",
    "Export the original series. A conversion may have flipped this one.",
)
LUNGS_CUT = Reason(
    "W_LUNGS_CUT",
    "the lungs reach an end or a side of the scan: part of them may be outside it",
    "Check that the series shows both lungs whole. Use a longer or wider series, if there is one.",
)
HU_SHIFT = Reason(
    "W_HU_SHIFT",
    "the lungs are less dense or denser than usual, by more than the preprocessing corrects",
    "Look for emphysema, a very deep or shallow breath, an unusual kernel or a wrong calibration.",
)
MASK_MISSING = Reason(
    "E_MASK_MISSING",
    "the settings ask for a lung mask, and there is none for this scan",
    "Give the mask with --lungs, or put it into the folder that [ct] lung_masks of site.toml names.",
)
MASK_GRID = Reason(
    "E_MASK_GRID",
    "only {percent} % of the lung mask lies inside the scan",
    "Give the mask that was made from exactly this series, with its position and orientation.",
)
MASK_SIDES = Reason(
    "E_MASK_SIDES",
    "the lung mask has the right lung on the left of the body",
    "Exchange the labels of right and left, or correct the orientation of the mask.",
)
