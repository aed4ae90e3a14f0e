"""Reasons for which a round is lost or a reply does not count fully."""

from models.refusal import Reason

QUORUM = Reason(
    "E_QUORUM",
    "the study needs {quorum} sites in each round and has {present}",
    "The last rounds' reports show which sites are missing or refused, and why. Then resume the study.",
)
EXAMPLES_CAPPED = Reason(
    "W_EXAMPLES_CAPPED",
    "the site claims more patients than it was enrolled with; it counts with the enrolled number",
    "Ask the site for the size of its cohort. If the cohort has grown, enrol the site with the new number.",
)
UPDATE_CLIPPED = Reason(
    "W_UPDATE_CLIPPED",
    "the site's update is more than twice as long as usual in the round; it is clipped to that length",
    "A hospital with many more patients than the others takes more steps; local_steps in the study's file gives all "
    "sites the same number. Otherwise check the site's data. In a round of two sites, either may be the unusual one.",
)
STRATEGY_SITES = Reason(
    "E_STRATEGY_SITES",
    "the strategy needs {needed} sites to withstand the hostile nodes in its options, and the study has {sites}",
    "Set fewer hostile nodes in the strategy's options, choose FedMedian, or invite more sites.",
)
STRATEGY_REPLIES = Reason(
    "E_STRATEGY_REPLIES",
    "the strategy needs {needed} valid replies in a round and has {present}",
    "The last rounds' reports show which sites are missing or refused, and why. Then resume the study.",
)
STRATEGY = Reason(
    "E_STRATEGY",
    "there is no strategy of this name; the strategies are {known}",
    "Use one of these names in the study's file.",
)
STRATEGY_OPTION = Reason(
    "E_STRATEGY_OPTION",
    "the strategy's option {option} is missing, unknown or out of range; its options are {known}",
    "Correct the option in the study's file.",
)
CHECKPOINT_NONE = Reason(
    "E_CHECKPOINT_NONE", "no checkpoint has been saved yet", "Start the study again instead of resuming it."
)
CHECKPOINT_DAMAGED = Reason(
    "E_CHECKPOINT_DAMAGED",
    "none of the {count} stored checkpoints is intact",
    "Restore the folder of checkpoints from a backup, or start the study again.",
)
CHECKPOINT_WRITE = Reason(
    "E_CHECKPOINT_WRITE",
    "the checkpoint could not be written; the previous one is unchanged",
    "Free space on the disk or correct its permissions, then resume the study.",
)
CHECKPOINT_STRATEGY = Reason(
    "E_CHECKPOINT_STRATEGY",
    "the checkpoint was made with another strategy",
    "Resume the study with the strategy that it started with.",
)
