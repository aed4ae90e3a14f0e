"""Reasons why a private round is not trained."""

from models.refusal import Reason

PRIVACY_BUDGET = Reason(
    "E_PRIVACY_BUDGET",
    "with this round, all private studies together would reach ε = {asked} at this site; {spent} of the budget of "
    "{budget} is spent",
    "A spent budget cannot be recovered. Ask for fewer rounds or more noise, or let the person responsible for the "
    "data set another max_epsilon in [privacy] of site.toml.",
)
PRIVACY_SETTINGS = Reason(
    "E_PRIVACY_SETTINGS",
    "the privacy cost of a step with this noise and sampling rate cannot be computed",
    "Check noise_multiplier and sample_rate in [privacy] of the study, and that opacus is installed at the site.",
)
PRIVACY_FILE = Reason(
    "E_PRIVACY_FILE",
    "the site's privacy budget cannot be read or written, and no step is trained that it does not record",
    "Free space on the disk and check the permissions of SITE_DIR/privacy. If budget.sqlite is damaged, restore it "
    "from the newest backup: an older backup misses what was spent since.",
)
