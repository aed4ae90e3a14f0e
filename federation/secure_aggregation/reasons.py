"""Reasons for which a hospital takes no part in a masked round, or a masked round is lost."""

from models.refusal import Reason

SECAGG_IDENTITY = Reason(
    "E_SECAGG_IDENTITY",
    "the key of this hospital's gateway for secure aggregation is damaged",
    "Restore keys/secagg from a backup. If there is none, delete it; every hospital must then approve a new list.",
)
SECAGG_ROSTER = Reason(
    "E_SECAGG_ROSTER",
    "the list of hospitals is not the one that this hospital approved",
    "Compare the list by telephone with the other hospitals, and approve it only if all of them see the same.",
)
SECAGG_ROSTER_SMALL = Reason(
    "E_SECAGG_ROSTER_SMALL",
    "a masked round needs at least {needed} hospitals, and there are {present}",
    "Wait for further hospitals. A sum of fewer would reveal too much about each of them.",
)
SECAGG_MEMBER = Reason(
    "E_SECAGG_MEMBER",
    "a message names a hospital that is not on the approved list, names one twice, or leaves this one out",
    "Compare the list of hospitals with the study's office. A server may have invented a hospital.",
)
SECAGG_MESSAGE = Reason(
    "E_SECAGG_MESSAGE",
    "a message of secure aggregation is not in the expected format",
    "Install the same version of fedthorax at the sites and at the server.",
)
SECAGG_SIGNATURE = Reason(
    "E_SECAGG_SIGNATURE",
    "a signature is not that of the hospital that it names, for this round",
    "The server changed or repeated a message. Tell the study's office, and keep the ledger.",
)
SECAGG_UNLIKE = Reason(
    "E_SECAGG_UNLIKE",
    "another hospital received a different model or different settings in this round",
    "The server sends the hospitals different models. Tell the other hospitals, and keep the ledger.",
)
SECAGG_TOO_FEW = Reason(
    "E_SECAGG_TOO_FEW",
    "too few hospitals take part in this step ({present}); {needed} are needed",
    "Ask the study's office which hospitals are missing. The model stays as it was.",
)
SECAGG_GROUPS = Reason(
    "E_SECAGG_GROUPS",
    "too few groups of hospitals have a sum ({present}); {needed} are needed for a median",
    "Ask the study's office which hospitals are missing. The model stays as it was.",
)
SECAGG_MODEL_USED = Reason(
    "E_SECAGG_MODEL_USED",
    "a sum of this kind for this model was already revealed, and a second one could reveal a single hospital's part",
    "Resume the run that began it. For a new run, of this study or of another one, choose another seed.",
)
SECAGG_ROUND_OLD = Reason(
    "E_SECAGG_ROUND_OLD",
    "this hospital has begun a later round of the run, and answers nothing about earlier ones",
    "If the server was restored from a backup, start a new run with another seed.",
)
SECAGG_STEP = Reason(
    "E_SECAGG_STEP",
    "this step of the round is not the next one, or was done before with other content",
    "The server asked out of order. Tell the study's office if it happens again.",
)
SECAGG_MASKED = Reason(
    "E_SECAGG_MASKED",
    "a reply was already masked in this attempt, and a mask is used only once",
    "Nothing to do: the server begins another attempt.",
)
SECAGG_SHARE = Reason(
    "E_SECAGG_SHARE",
    "a share of a key from another hospital cannot be opened",
    "The server changed it, or gave it to the wrong hospital. Tell the study's office, and keep the ledger.",
)
SECAGG_UPLOADED_TWICE = Reason(
    "E_SECAGG_UPLOADED_TWICE",
    "this hospital has signed another list of those whose replies arrived in this attempt",
    "The server tells different stories about who replied. Tell the other hospitals, and keep the ledger.",
)
SECAGG_LEFT_OUT = Reason(
    "E_SECAGG_LEFT_OUT",
    "the server does not count this hospital's reply",
    "If the reply was on time, the server holds it back; its mask stays. Tell the study's office if it happens again.",
)
SECAGG_FEW_BRING = Reason(
    "E_SECAGG_FEW_BRING",
    "a hospital dropped out, and the sum of one of the figures would now be that of fewer than three hospitals",
    "The round is lost and the model stays as it was. In the next attempt the hospitals leave this figure out.",
)
SECAGG_NOT_SAME = Reason(
    "E_SECAGG_NOT_SAME",
    "figures or answers of this kind were summed before over other hospitals of the list: the difference of the sums "
    "would be the figures of the hospitals that are in one of them",
    "Wait until the same hospitals are online. If one is gone for good, the hospitals approve a list without it.",
)
SECAGG_FORGOTTEN = Reason(
    "E_SECAGG_FORGOTTEN",
    "figures or answers of this kind were summed before, and it is not known over which hospitals: the gateway's "
    "folder is older than the ledger, and the ledger's lines about these sums are from an earlier version",
    "Stop the node and put back the newest copy of SITE_DIR/gateway. If there is none, move keys/secagg away, start "
    "the node, and let all hospitals approve the new list with this hospital's new key.",
)
SECAGG_CHANGES = Reason(
    "E_SECAGG_CHANGES",
    "the hospitals in the sum changed more than {allowed} times in the runs of this study",
    "Find out why hospitals drop out: sums can be compared. The limit is max_sum_changes in site.toml.",
)
SECAGG_LOST = Reason(
    "E_SECAGG_LOST",
    "the keys of this attempt are gone, because the machine was restarted or the folder was restored",
    "Nothing to do: the server begins another attempt.",
)
SECAGG_RANGE = Reason(
    "E_SECAGG_RANGE",
    "a number of the reply is too large to be summed, or the sum is noise",
    "Read the site's log. Batch-norm values this large mean that the training failed. Noise is the sum if hospitals "
    "were told different things, or one of them sent wrong numbers.",
)
SECAGG_WEIGHT = Reason(
    "E_SECAGG_WEIGHT",
    "this hospital has more patients than the study counts in all hospitals together",
    "Correct the numbers of patients with the study's office: fedthorax server enrol --patients.",
)
SECAGG_SHARES = Reason(
    "E_SECAGG_SHARES",
    "the shares that the hospitals returned do not give the key of a mask",
    "A hospital's gateway is broken or hostile. Ask each hospital for its log of this round.",
)
SECAGG_SPARSE = Reason(
    "E_SECAGG_SPARSE",
    "{percent} % of the weights did not move in training, more than {allowed} %; a sum would show single hospitals",
    "The server may have sent a prepared model. Tell the study's office, and keep the ledger.",
)
SECAGG_VOTES = Reason(
    "E_SECAGG_VOTES",
    "the votes in the sum are not one for each hospital",
    "A hospital's gateway was changed. The round does not count. If this happens again, end the study, and run it with "
    "a list without one hospital at a time until it no longer happens.",
)
SECAGG_LONG = Reason(
    "E_SECAGG_LONG",
    "the mean of the updates is longer than each single one may be",
    "A hospital's gateway was changed: it does not shorten its update. The round does not count. If this happens "
    "again, end the study, and run it with a list without one hospital at a time until it no longer happens.",
)
