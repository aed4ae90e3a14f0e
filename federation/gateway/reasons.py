"""Reasons for which the gateway refuses a request, a task or a reply."""

from models.refusal import Reason

GATEWAY_PATH = Reason(
    "E_GATEWAY_PATH",
    "the node sent a request that no node needs",
    "Nothing was sent to the server. Check which programs run as the node's user on this machine.",
)
GATEWAY_KEY = Reason(
    "E_GATEWAY_KEY",
    "a program other than this site's node connected to the gateway",
    "Nothing was sent to the server. Check which programs run on this machine.",
)
GATEWAY_ENDED = Reason(
    "E_GATEWAY_ENDED",
    "the site's gateway restarted while a task was in progress",
    "The round goes on without this site. The node takes part in the next round automatically.",
)
CERTIFICATE_REFUSED = Reason(
    "E_CERTIFICATE_REFUSED",
    "the study's server does not accept this node's certificate: it expired, was revoked, or belongs to another study",
    "Renew the certificate (fedthorax node renew), or ask the study's coordinator for a new invitation.",
)
APP_REFUSED = Reason(
    "E_APP_REFUSED",
    "the study's app is not approved at this site",
    "Review the app with `fedthorax node apps`. If it may run here, approve it with `fedthorax node approve`.",
)
APP_DAMAGED = Reason(
    "E_APP_DAMAGED",
    "the app that the server sent does not match the hash that the server named",
    "Inform the study's coordinator: the server, or somebody between it and this site, changed the app.",
)
SITE_LIMIT = Reason(
    "E_SITE_LIMIT",
    "the study asks for {asked} {what}, and this site allows {allowed}",
    "Change the study, or raise the limit in [gateway] of site.toml.",
)
SITE_LEAST = Reason(
    "E_SITE_LEAST",
    "the study asks for only {asked} {what} in a round, and this site requires at least {allowed}",
    "Change the study. With a lower limit in [gateway] of site.toml, updates follow single patients more closely.",
)
AUGMENTATION = Reason(
    "E_AUGMENTATION",
    "the study trains without augmentation, and this site requires augmentation",
    "Set augment = true in the study. Or switch off require_augmentation in [gateway] of site.toml; updates then "
    "follow single scans more closely.",
)
STUDY_REFUSED = Reason(
    "E_STUDY_REFUSED",
    "the study's settings are not approved at this site",
    "Review them with `fedthorax node studies`. If such a study may run here, approve it with `fedthorax node "
    "approve-study`. To approve a study of this release, add its name to studies in [gateway] of site.toml.",
)
BEGIN_REFUSED = Reason(
    "E_BEGIN_REFUSED",
    "the study starts from a release that is not approved at this site",
    "Get the release's signed folder and its maker's public key. Approve it with `fedthorax node approve-release`.",
)
PRIVACY_DOWNGRADE = Reason(
    "E_PRIVACY_DOWNGRADE",
    "this site took part in a study of this name with differential privacy, and the study now comes without it",
    "Give a study without [privacy] another name. Otherwise it would reveal without noise what the noise protected.",
)
MODEL_FIRST = Reason(
    "E_MODEL_FIRST",
    "the first model of the run is not the one that the study's seed determines",
    "Install the same versions of fedthorax and PyTorch at the site and at the server. If they are the same, the "
    "server sent other weights than the study's: ask the study's office why.",
)
MODEL_DRIFT = Reason(
    "E_MODEL_DRIFT",
    "the model differs more from the last one that this site trained than training can explain",
    "After a long absence this is expected: the site can take part in the next run. Otherwise ask the study's office "
    "where the model comes from. To allow a longer absence, raise max_missed_rounds in [gateway] of site.toml.",
)
MODEL_UNTRAINED = Reason(
    "E_MODEL_UNTRAINED",
    "the server asks about a model that this site did not help to train",
    "No action is needed. This site answers questions only about models of runs in which it trained.",
)
ROUND_NUMBER = Reason(
    "E_ROUND_NUMBER",
    "the round's number is not one of this run's {rounds} rounds, or the run has asked for too many rounds",
    "Ask the study's office. A run may ask a site once for each round, and a second time if the round was lost.",
)
ASKED_ALREADY = Reason(
    "E_ASKED_ALREADY",
    "this site has already answered a different question of this kind about the same model",
    "No action is needed. One question of each kind is allowed per model. A repeated question gets the same answer.",
)
MEMORY_LOST = Reason(
    "E_MEMORY_LOST",
    "the ledger says that this site answered such a question before, and the gateway's folder no longer has the answer",
    "Other questions are answered. The folder was lost, or is older than the ledger. If there is a newer copy of "
    "SITE_DIR/gateway/answers, stop the node and restore it. Otherwise no action is needed.",
)
QUESTIONS_RUN = Reason(
    "E_QUESTIONS_RUN",
    "this run has already asked the {allowed} questions of this kind that it may ask",
    "No action is needed. The study's settings determine how many models a run compares.",
)
QUESTIONS_MONTH = Reason(
    "E_QUESTIONS_MONTH",
    "this site has answered {allowed} questions about models within 31 days, which is its limit",
    "Wait, or raise max_questions_a_month in [gateway] of site.toml.",
)
ROUNDS_A_DAY = Reason(
    "E_ROUNDS_A_DAY",
    "this site has taken part in {allowed} rounds within 24 hours, which is its limit",
    "Wait, or raise max_rounds_a_day in [gateway] of site.toml.",
)
ROUNDS_A_MONTH = Reason(
    "E_ROUNDS_A_MONTH",
    "this site has taken part in {allowed} rounds within 31 days, which is its limit",
    "Wait, or raise max_rounds_a_month in [gateway] of site.toml.",
)
COHORT_ALMOST_SAME = Reason(
    "E_COHORT_ALMOST_SAME",
    "statistics of almost the same training patients left before: the difference would reveal single patients",
    "No action is needed. The statistics can leave again when min_patients patients have joined or left since then. "
    "The study goes on without this site's statistics.",
)
COHORT_CHANGED = Reason(
    "E_COHORT_CHANGED",
    "the cohort changed while a question about its training patients was being answered",
    "No action is needed. The statistics can leave at the next such question. The study goes on without this site's "
    "statistics.",
)
PRIVACY_REQUIRED = Reason(
    "E_PRIVACY_REQUIRED",
    "this site takes part only in studies with differential privacy",
    "Add [privacy] to the study, or change [privacy] in site.toml.",
)
TASK_KIND = Reason(
    "E_TASK_KIND",
    "the server sent a kind of task that no study of this release uses",
    "Install the same version of fedthorax at the site and at the server.",
)
PRIVACY_KIND = Reason(
    "E_PRIVACY_KIND",
    "the study is private and asks for information on the training patients that its privacy budget does not cover",
    "No action is needed. A private study fits no head per site, and its audit goes on without embeddings.",
)
TASK_UNANSWERABLE = Reason(
    "E_TASK_UNANSWERABLE",
    "the server sent a message that cannot be answered: its type, ids or times are not those of a task for this node",
    "The message was dropped. Inform the study's coordinator: an honest server sends no such message.",
)
TASK_DAMAGED = Reason(
    "E_TASK_DAMAGED",
    "the data that the server sent is incomplete or does not match its hash",
    "If this happens again, inform the study's coordinator: the server, or somebody between it and this site, may have "
    "changed the data.",
)
TASK_RECORDS = Reason(
    "E_TASK_RECORDS",
    "the server sent something other than exactly the study's model and the round's settings",
    "Install the same version of fedthorax at the site and at the server.",
)
REPLY_DAMAGED = Reason(
    "E_REPLY_DAMAGED",
    "the reply is incomplete, larger than allowed, or not of the required form",
    "Read logs/client.log in the site's folder.",
)
REPLY_COUNTER = Reason(
    "E_REPLY_COUNTER",
    "a batch-norm counter in the reply is not what the round's training produces",
    "Do not run this app again before somebody has reviewed its code.",
)
REPLY_BUFFERS = Reason(
    "E_REPLY_BUFFERS",
    "a batch-norm mean or variance in the reply differs more from the received one than a round's training can explain",
    "Ask the study's office for a lower learning rate. If the rate is usual, do not run this app again before somebody "
    "has reviewed its code.",
)
REPLY_DIGITS = Reason(
    "E_REPLY_DIGITS",
    "a mean or variance in the reply has more digits than may leave, or is out of range",
    "Install the same version of fedthorax as the study's app, or review the app's code before it runs again.",
)
REPLY_UPDATE = Reason(
    "E_REPLY_UPDATE",
    "training changed the weights more than this site allows",
    "Lower the study's learning rate, or raise max_update in [gateway] of site.toml.",
)
REPLY_FIXED = Reason(
    "E_REPLY_FIXED",
    "the reply to a training task changed weights that training must not change",
    "Review the app's code. The features of age and sex are fixed; this release's own app does not change them.",
)
REPLY_HEAD = Reason(
    "E_REPLY_HEAD",
    "a task that fits only the network's last layer changed another part of the network",
    "Do not run this app again before somebody has reviewed its code.",
)
REPLY_PATIENTS = Reason(
    "E_REPLY_PATIENTS",
    "the reply holds a figure that covers fewer patients than this site allows",
    "Unless the cohort has just changed, do not run this app again before somebody has reviewed its code.",
)
REPLY_UNMASKED = Reason(
    "E_REPLY_UNMASKED",
    "a reply of a study with secure aggregation was about to leave without masks",
    "Nothing left. Install the release again; if it happens again, report it as a fault of the software.",
)
RUN_OVER = Reason(
    "E_RUN_OVER",
    "the run ended, or the task expired, before the answer could be sent",
    "No action is needed.",
)
SECAGG_REQUIRED = Reason(
    "E_SECAGG_REQUIRED",
    "this site sends only masked replies, and the study does not sum masked replies",
    "Ask the study's office to set secure = true in [aggregation]. If this hospital also accepts studies without "
    "masks, set require_secure_aggregation = false in site.toml.",
)
SECAGG_KIND = Reason(
    "E_SECAGG_KIND",
    "the study sums masked replies, and the server asks for something that is no part of a sum",
    "No action is needed. Such a study fits no head per site, and its audit goes on without the probe.",
)
SECAGG_SETTINGS = Reason(
    "E_SECAGG_SETTINGS",
    "the server's description of the masked round does not fit the approved study",
    "Install the same version of fedthorax at the site and at the server. If they are the same, tell the other "
    "hospitals.",
)
SECAGG_UNFINISHED = Reason(
    "E_SECAGG_UNFINISHED",
    "the server has begun masked rounds of {present} other runs and finished none of them; {allowed} may wait at most",
    "Ask the study's office: an honest server leaves at most one. Each ends when the office resumes its run or starts "
    "another one, at the latest after seven days. If the office knows nothing of them, tell the other hospitals.",
)
AUDIT_KIND = Reason(
    "E_AUDIT_KIND",
    "the server asks for the figures of the shortcut audit, which the approved study does not have",
    "Install the same version of fedthorax at the site and at the server. If they are the same, the server asks for "
    "more than was approved: tell the other hospitals.",
)
SECAGG_THRESHOLDS = Reason(
    "E_SECAGG_THRESHOLDS",
    "a test in a study with secure aggregation comes with a calibration or thresholds, which it does not need",
    "Install the same version of fedthorax at the site and at the server. If they are the same, the server chose "
    "settings that no study of this release needs: tell the other hospitals.",
)
