"""Reasons why the gateway refuses a task or a reply."""

from models.refusal import Reason

GATEWAY_PATH = Reason(
    "E_GATEWAY_PATH",
    "the node asked the server for something that no node needs",
    "Nothing was sent. Look at what runs on this machine as the node's user.",
)
GATEWAY_KEY = Reason(
    "E_GATEWAY_KEY",
    "a program other than this site's node spoke to the gateway",
    "Nothing was sent. Look at what runs on this machine.",
)
GATEWAY_ENDED = Reason(
    "E_GATEWAY_ENDED",
    "the site's gateway was started anew while a task was under way",
    "The round goes on without this site; the node takes the next one by itself.",
)
CERTIFICATE_REFUSED = Reason(
    "E_CERTIFICATE_REFUSED",
    "the study's server does not accept this node's certificate: it has expired, was revoked, or is another study's",
    "Renew it (fedthorax node renew), or ask the study's coordinator for a new invitation.",
)
APP_REFUSED = Reason(
    "E_APP_REFUSED",
    "the study's app is not approved at this site",
    "Look at it with `fedthorax node apps` and, if it may run here, `fedthorax node approve` it.",
)
APP_DAMAGED = Reason(
    "E_APP_DAMAGED",
    "the app that the server sent is not the one that it named, by its hash",
    "Ask the study's coordinator: the server, or somebody on the way, has changed it.",
)
SITE_LIMIT = Reason(
    "E_SITE_LIMIT",
    "the study asks for {asked} {what}, and this site allows {allowed}",
    "Change the study, or raise the limit in [gateway] of site.toml.",
)
SITE_LEAST = Reason(
    "E_SITE_LEAST",
    "the study asks for only {asked} {what} in a round, and this site demands {allowed} or more",
    "Change the study. A lower limit in [gateway] of site.toml lets updates follow single patients more closely.",
)
AUGMENTATION = Reason(
    "E_AUGMENTATION",
    "the study trains without augmentation, and this site demands it",
    "Set augment = true in the study. Without it updates follow single scans more closely; require_augmentation in "
    "[gateway] of site.toml allows that.",
)
STUDY_REFUSED = Reason(
    "E_STUDY_REFUSED",
    "the study's settings are not approved at this site",
    "Look at them with `fedthorax node studies` and, if such a study may run here, `fedthorax node approve-study` it. "
    "A study of this release is approved by its name under studies in [gateway] of site.toml.",
)
BEGIN_REFUSED = Reason(
    "E_BEGIN_REFUSED",
    "the study begins from a release that is not approved at this site",
    "Get the release's signed folder and the public key of who made it; `fedthorax node approve-release` approves it.",
)
PRIVACY_DOWNGRADE = Reason(
    "E_PRIVACY_DOWNGRADE",
    "this site took part in a study of this name with differential privacy, and now it comes without",
    "Give a study without [privacy] another name. What was learnt with noise would be told again without it.",
)
MODEL_FIRST = Reason(
    "E_MODEL_FIRST",
    "the first model of the run is not the one that the study's seed gives",
    "Install the same version of fedthorax and PyTorch at the site and at the server. If they are the same, the server "
    "sent weights of its own choice: ask the study's office why.",
)
MODEL_DRIFT = Reason(
    "E_MODEL_DRIFT",
    "the model is further from the last one that this site trained than training moves it",
    "After a long absence this is expected: the site takes part again in the next run. Else ask the study's office "
    "where the model comes from. max_missed_rounds in [gateway] of site.toml allows a longer absence.",
)
MODEL_UNTRAINED = Reason(
    "E_MODEL_UNTRAINED",
    "the server asks about a model that this site did not help to train",
    "Nothing is to be done: this site answers questions only about models of runs in which it trained.",
)
ROUND_NUMBER = Reason(
    "E_ROUND_NUMBER",
    "the round is none of this run's, which has {rounds} rounds",
    "Ask the study's office: a run asks a site for each of its rounds, and once more where a round was lost.",
)
ASKED_ALREADY = Reason(
    "E_ASKED_ALREADY",
    "this site has answered another question of this kind about the same model",
    "Nothing is to be done: a model is asked about once in each way. The same question gets the same answer again.",
)
QUESTIONS_RUN = Reason(
    "E_QUESTIONS_RUN",
    "this run has asked its {allowed} questions of this kind",
    "Nothing is to be done: the settings of the study say how many models are compared.",
)
QUESTIONS_MONTH = Reason(
    "E_QUESTIONS_MONTH",
    "this site has answered {allowed} questions about models within 31 days, as many as it allows",
    "Wait, or raise max_questions_a_month in [gateway] of site.toml.",
)
ROUNDS_A_DAY = Reason(
    "E_ROUNDS_A_DAY",
    "this site has taken part in {allowed} rounds within 24 hours, as many as it allows",
    "Wait, or raise max_rounds_a_day in [gateway] of site.toml.",
)
ROUNDS_A_MONTH = Reason(
    "E_ROUNDS_A_MONTH",
    "this site has taken part in {allowed} rounds within 31 days, as many as it allows",
    "Wait, or raise max_rounds_a_month in [gateway] of site.toml.",
)
COHORT_ALMOST_SAME = Reason(
    "E_COHORT_ALMOST_SAME",
    "statistics of almost the same training patients were told before: their difference would tell of single patients",
    "Nothing is to be done: they are told again once min_patients patients have joined or left since. The study goes "
    "on without this site's statistics.",
)
PRIVACY_REQUIRED = Reason(
    "E_PRIVACY_REQUIRED",
    "this site takes part only in studies with differential privacy",
    "Add [privacy] to the study, or change [privacy] in site.toml.",
)
TASK_KIND = Reason(
    "E_TASK_KIND",
    "the server asks for something that no study of this release asks for",
    "Install the same version of fedthorax at the site and at the server.",
)
PRIVACY_KIND = Reason(
    "E_PRIVACY_KIND",
    "the study is private, and asks for something of the training patients that its budget does not pay for",
    "Nothing is left to do: a private study fits no head to a site, and its audit goes on without embeddings.",
)
TASK_UNANSWERABLE = Reason(
    "E_TASK_UNANSWERABLE",
    "the server sent a message that cannot be answered: its type, ids or times are not those of a task for this node",
    "The message was dropped. Ask the study's coordinator: an honest server sends no such message.",
)
TASK_DAMAGED = Reason(
    "E_TASK_DAMAGED",
    "what the server sent is not whole, or not what its hash says",
    "If it happens again, ask the study's coordinator: the server, or somebody on the way, may have changed it.",
)
TASK_RECORDS = Reason(
    "E_TASK_RECORDS",
    "what the server sent is not exactly the study's model and the round's settings",
    "Install the same version of fedthorax at the site and at the server.",
)
REPLY_DAMAGED = Reason(
    "E_REPLY_DAMAGED",
    "the reply is not whole, not of the form that was asked for, or larger",
    "Read logs/client.log in the site's folder.",
)
REPLY_COUNTER = Reason(
    "E_REPLY_COUNTER",
    "a batch-norm counter of the reply is not what the round's training can have made of it",
    "Do not run this app again before somebody has read it.",
)
REPLY_BUFFERS = Reason(
    "E_REPLY_BUFFERS",
    "a batch-norm mean or variance of the reply is further from what came in than a round's training takes it",
    "Ask the study's office for a lower learning rate. If that is usual, do not run this app again before it was read.",
)
REPLY_DIGITS = Reason(
    "E_REPLY_DIGITS",
    "a mean or variance of the reply has more digits than may leave, or is out of range",
    "Install the same version of fedthorax as the study's app, or read the app before it runs again.",
)
REPLY_UPDATE = Reason(
    "E_REPLY_UPDATE",
    "training moved the weights further than this site allows",
    "Lower the study's learning rate, or raise max_update in [gateway] of site.toml.",
)
REPLY_FIXED = Reason(
    "E_REPLY_FIXED",
    "a reply to training changed weights that training does not move",
    "Look at the app: the features of age and sex are fixed, and no other code than the release's changes them.",
)
REPLY_HEAD = Reason(
    "E_REPLY_HEAD",
    "what was to fit the network's last layer alone changed another part of it",
    "Do not run this app again before somebody has read it.",
)
REPLY_PATIENTS = Reason(
    "E_REPLY_PATIENTS",
    "the reply holds a figure over fewer patients than this site allows",
    "Do not run this app again before somebody has read it, unless the cohort has just changed.",
)
RUN_OVER = Reason(
    "E_RUN_OVER",
    "the run ended, or the task expired, before the answer could be sent",
    "Nothing is left to do.",
)
