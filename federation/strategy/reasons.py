"""Reasons why a round is lost or a reply does not count."""

from models.refusal import Reason

QUORUM = Reason(
    "E_QUORUM",
    "the study needs {quorum} sites in each round and has {present}",
    "See in the last rounds' report which sites are missing or refused and why, then resume the study.",
)
EXAMPLES_CAPPED = Reason(
    "W_EXAMPLES_CAPPED",
    "the site claims more patients than it was enrolled with, and counts with the enrolled number",
    "Ask the site for the size of its cohort; enrol it with the right number if it has grown.",
)
UPDATE_CLIPPED = Reason(
    "W_UPDATE_CLIPPED",
    "the site's update is more than twice as long as is usual in the round, and counts at twice that length",
    "A hospital with many more patients than the others takes more steps; local_steps in the study's file makes them "
    "alike. If it has not, look at its data. In a round of two sites either may be the unusual one.",
)
STRATEGY_SITES = Reason(
    "E_STRATEGY_SITES",
    "the strategy needs {needed} sites to withstand what it is set to withstand, and the study has {sites}",
    "Name fewer hostile nodes in the strategy's options, choose FedMedian, or invite more sites.",
)
STRATEGY_REPLIES = Reason(
    "E_STRATEGY_REPLIES",
    "the strategy needs {needed} valid replies in a round and has {present}",
    "See in the last rounds' report which sites are missing or refused and why, then resume the study.",
)
STRATEGY = Reason(
    "E_STRATEGY",
    "there is no strategy of this name; there are {known}",
    "Name one of them in the study's file.",
)
STRATEGY_OPTION = Reason(
    "E_STRATEGY_OPTION",
    "the strategy's option {option} is unknown or out of its range; it takes {known}",
    "Correct the option in the study's file.",
)
CHECKPOINT_NONE = Reason(
    "E_CHECKPOINT_NONE", "no checkpoint has been saved yet", "Start the study anew instead of resuming it."
)
CHECKPOINT_DAMAGED = Reason(
    "E_CHECKPOINT_DAMAGED",
    "none of the {count} checkpoints kept is intact",
    "Restore the folder of checkpoints from a backup, or start the study anew.",
)
CHECKPOINT_WRITE = Reason(
    "E_CHECKPOINT_WRITE",
    "the checkpoint could not be written; the one before is still there",
    "Free space on the disk or correct its permissions, then resume the study.",
)
CHECKPOINT_STRATEGY = Reason(
    "E_CHECKPOINT_STRATEGY",
    "the checkpoint was made with another strategy",
    "Resume with the strategy that the study began with.",
)
