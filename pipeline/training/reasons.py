"""Reasons why a private round is not trained."""

from models.refusal import Reason

PRIVACY_BUDGET = Reason(
    "E_PRIVACY_BUDGET",
    "the round would bring all private studies together to ε = {asked} here; {spent} are spent of a budget of {budget}",
    "A spent budget never comes back. Ask for fewer rounds or more noise, or let whoever answers for the data decide "
    "on another max_epsilon in [privacy] of site.toml.",
)
PRIVACY_SETTINGS = Reason(
    "E_PRIVACY_SETTINGS",
    "what a step with this noise and sampling rate costs cannot be worked out here",
    "Look at noise_multiplier and sample_rate in [privacy] of the study, and whether opacus is installed at the site.",
)
PRIVACY_FILE = Reason(
    "E_PRIVACY_FILE",
    "the site's privacy budget cannot be read or written, and what it does not hold is not trained",
    "Free space on the disk and check permissions of SITE_DIR/privacy. If budget.sqlite is damaged, bring it back from "
    "the newest backup: an older one has forgotten what was spent since.",
)
