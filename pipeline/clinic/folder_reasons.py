"""Reasons why a folder is refused as a clinic's folder."""

from models.refusal import Reason

NO_CLINIC = Reason(
    "E_NO_CLINIC", "the folder is not a clinic's folder", "Give the folder that `fedthorax clinic init` created."
)
CLINIC_FOLDER = Reason(
    "E_CLINIC_FOLDER",
    "the folder holds other files, and no clinic",
    "Give a clinic's folder, or one that is empty or does not exist yet. Nothing was written.",
)
CLINIC_IS_MODEL = Reason(
    "E_CLINIC_IS_MODEL",
    "the folder is that of a model, and not of a clinic",
    "Name it with --model, after the clinic's folder: `fedthorax serve clinic --model MODEL_DIR`. Nothing was written.",
)
CLINIC_EXISTS = Reason(
    "E_CLINIC_EXISTS", "the folder already is a clinic's folder", "Edit its clinic.toml, or give another folder."
)
