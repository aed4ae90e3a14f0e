"""The table of reasons for which something between hospitals and server is refused (E_) or flagged (W_)."""

from models.refusal import Reason

# --- certificates and keys --------------------------------------------------------------------------------

KEY_EXISTS = Reason(
    "E_KEY_EXISTS",
    "a key or certificate named {file} is already there, and keys are never overwritten",
    "Use it, or move it away first. A node with a new key has to be enrolled again.",
)
HOST_NAME = Reason(
    "E_HOST_NAME",
    "{host} is neither a host name nor an IP address",
    "Give the name or address alone, as the hospitals will dial it: no scheme, no port, no path.",
)
PUBLIC_KEY = Reason(
    "E_PUBLIC_KEY",
    "the file is not a node's public key",
    "Give the .pub file that was made beside the node's private key (ECDSA P-384, OpenSSH format).",
)
CERTIFICATE_EXPIRED = Reason(
    "E_CERTIFICATE_EXPIRED",
    "the certificate of {holder} was valid until {until}",
    "The server's: fedthorax server renew DIR. A site's: the study's office enrols it again, and it joins again.",
)
CERTIFICATE_ENDS = Reason(
    "W_CERTIFICATE_ENDS",
    "the certificate of {holder} is valid only until {until}",
    "The server's: fedthorax server renew DIR, then start it again. A site's: fedthorax node renew SITE_DIR.",
)
AUTHORITY = Reason(
    "E_AUTHORITY",
    "this authority cannot sign for a study: {problem}",
    "Give the PEM certificate of an authority that may sign certificates and CRLs, and its key without a passphrase.",
)
NODE_CERTIFICATE = Reason(
    "E_NODE_CERTIFICATE",
    "the node's certificate is damaged, or was not made for the node's key",
    "Join the study again: fedthorax node join SITE_DIR CODE, with a new code from the study's office.",
)

# --- the study's server -----------------------------------------------------------------------------------

SERVER_EXISTS = Reason(
    "E_EXISTS",
    "this folder already holds a server",
    "Start it, or choose another folder for a new one.",
)
NO_SERVER = Reason(
    "E_NO_SERVER",
    "this folder holds no server",
    "Make one first: fedthorax server init DIR.",
)
PORT_IN_USE = Reason(
    "E_PORT_IN_USE",
    "another process already listens on port {port}",
    "Stop it (perhaps this server is running already), or set another port in server.toml.",
)
SERVER_UNREACHABLE = Reason(
    "E_SERVER_UNREACHABLE",
    "the study's server does not answer on port {port}",
    "Start it first: fedthorax server start DIR. Its log is in DIR/logs.",
)
SITE_NAME = Reason(
    "E_SITE_NAME",
    "a site's name is made of the letters a to z, digits and hyphens",
    "Choose a name such as hospital-a; it is shown to every participant, so it names no person.",
)
SITE_NAME_TAKEN = Reason(
    "E_SITE_NAME_TAKEN",
    "a site named {site} has joined already",
    "Choose another name. If that site lost its key or certificate: fedthorax server revoke DIR NAME, then enrol it.",
)
SITE_UNKNOWN = Reason(
    "E_SITE_UNKNOWN",
    "the study has no site of this name, and has invited none",
    "`fedthorax server sites DIR` shows the names.",
)
ALREADY_ENROLLED = Reason(
    "E_ALREADY_ENROLLED",
    "this key is already enrolled, for the site {site}",
    "Nothing is left to do if that is the site you mean; each site needs a key of its own.",
)

# --- the server's door ------------------------------------------------------------------------------------

NO_CERTIFICATE = Reason(
    "E_NO_CERTIFICATE",
    "the caller shows no certificate",
    "Let the site join the study first: fedthorax node join SITE_DIR CODE.",
)
CERTIFICATE_UNKNOWN = Reason(
    "E_CERTIFICATE_UNKNOWN",
    "the caller's certificate was not issued by this study",
    "Let the site join this study: fedthorax node join SITE_DIR CODE, with a code from the study's office.",
)
CERTIFICATE_REVOKED = Reason(
    "E_CERTIFICATE_REVOKED",
    "the study has revoked this site's certificate",
    "Ask the study's office. To join again the site needs a new code and a new key.",
)
NODE_KEY_OTHER = Reason(
    "E_NODE_KEY",
    "the request is signed with another key than the one that the caller's certificate is for",
    "Use keys/node and keys/node.crt of one and the same site; if they do not belong together, join again.",
)
NOT_FOR_NODE = Reason(
    "E_NOT_FOR_NODE",
    "the request concerns a message, an object or a run that this node was not sent",
    "A node of this version sends no such request while its task lasts. If the server's log repeats it for one site, "
    "ask that site's operator, and revoke its certificate if the key was stolen.",
)
CLOCK = Reason(
    "E_CLOCK",
    "the request was signed {seconds} s {direction} the server's time",
    "Set both clocks by NTP: Flower accepts what was signed up to 300 s before, and 5 s after, the server's time.",
)
NO_WAY = Reason(
    "E_NO_WAY",
    "the door leads nowhere from this path",
    "Only a node's own requests and enrolment pass; everything else is for the server's own machine.",
)
BODY_SIZE = Reason(
    "E_BODY_SIZE",
    "the request does not tell its length, or is longer than {megabytes} MB",
    "Install the same version of fedthorax at the site and at the server.",
)
TOO_SLOW = Reason(
    "E_TOO_SLOW",
    "the request did not arrive within {seconds} s",
    "Look at the site's connection to the server.",
)
DOOR_BUSY = Reason(
    "E_DOOR_BUSY",
    "the caller has too many requests under way, or too many tries in a minute",
    "Wait a minute. If it comes again, see in the server's logs/door.log what the site asks for.",
)
SUPERLINK_SILENT = Reason(
    "E_SUPERLINK_SILENT",
    "the SuperLink behind the door does not answer",
    "Read DIR/logs/superlink.log on the server's machine, and start the server again.",
)
INVITATION = Reason(
    "E_INVITATION",
    "the code is wrong, or void after too many wrong tries",
    "Copy the whole code again. If it is void, the study's office makes a new one: fedthorax server enrol DIR NAME.",
)
INVITATION_OVER = Reason(
    "E_INVITATION_OVER",
    "the code is older than 7 days, or another node has used it",
    "The study's office makes a new one: fedthorax server enrol DIR NAME. If nobody of yours used it, say so there.",
)
KEY_REVOKED = Reason(
    "E_KEY_REVOKED",
    "this node's key was revoked",
    "Move keys/node and keys/node.pub away and join again: a new key is made.",
)

# --- joining a study --------------------------------------------------------------------------------------

JOIN_CODE = Reason(
    "E_JOIN_CODE",
    "this is not an enrolment code",
    "Give the whole code as the study's office sent it: host:port/authority/invitation/secret.",
)
OTHER_AUTHORITY = Reason(
    "E_OTHER_AUTHORITY",
    "the server that answered belongs to another authority than the code names",
    "Do not go on: something between here and the study's server answers in its place. Tell the study's office.",
)
JOIN_REFUSED = Reason(
    "E_JOIN_REFUSED",
    "the study's server refused: {answer}",
    "The table of refusals tells what this code means; the server's logs/door.log says more.",
)

# --- processes --------------------------------------------------------------------------------------------

NOT_STARTED = Reason(
    "E_NOT_STARTED",
    "{process} did not come up; the end of its log {log} says why",
    "Read the log, remove the cause and start it again.",
)
NOT_ENROLLED = Reason(
    "E_NOT_ENROLLED",
    "the study's server does not let this node's key in",
    "Send the node's .pub file to the study's coordinator to be enrolled. A node that was killed, or runs elsewhere "
    "with the same key, counts as present for a minute: start it again then.",
)
NODE_RUNNING = Reason(
    "E_NODE_RUNNING",
    "the node of this site is running already",
    "`fedthorax node status` tells what it does; end that one before you start another.",
)
NODE_FILE = Reason(
    "E_NODE_FILE",
    "{file} is not there, or this user may not read it",
    "Put the study's ca.crt where ca_certificate in site.toml says; run the node as the user who owns the site.",
)
NODE_FORGOTTEN = Reason(
    "E_NODE_FORGOTTEN",
    "the study's server no longer knows this node by its number: it was moved, or has lost its memory",
    "Start the node again: it introduces itself anew. `fedthorax node start` does so by itself.",
)
NODE_ENDED = Reason(
    "E_NODE_ENDED",
    "the node ended by itself",
    "Read the end of logs/node.log in the site's folder, remove the cause and start it again.",
)
TASK_DIED = Reason(
    "E_TASK_DIED",
    "the process that worked on a task was ended by the system, most likely for want of memory",
    "Free memory on this machine; the node takes the next round's task by itself.",
)

SERVER_UNTRUSTED = Reason(
    "E_SERVER_UNTRUSTED",
    "the certificate of the server that answered is not the study's, or not for the name that was dialled",
    "Compare the ca.crt here with the coordinator's, and dial the server by a name that it was made for.",
)
SERVER_SILENT = Reason(
    "E_SERVER_SILENT",
    "the study's server does not answer the node",
    "Check the server's address and port, that it runs, and that the firewall lets the node out to it.",
)

# --- the sandbox ------------------------------------------------------------------------------------------

SANDBOX_MISSING = Reason(
    "E_SANDBOX_MISSING",
    "bubblewrap, which keeps a study's code from the network and from other files, is not installed",
    "Install the package bubblewrap (0.8 or later), or set [sandbox] kind in site.toml to systemd.",
)
SANDBOX = Reason(
    "E_SANDBOX",
    "this system does not let bubblewrap confine a study's code",
    "Allow user namespaces to the user who runs the node (sysctl, AppArmor; containers seldom can), or set [sandbox] "
    "kind in site.toml to systemd. To run without walls, set it to none and name in accepted_by who accepted that.",
)
SANDBOX_ACCESS = Reason(
    "E_SANDBOX_ACCESS",
    "the user who runs a study's code could not be given the files that it works with",
    "Install the package acl and make the user fedthorax-app, as docs/operations.md says; the site must lie on a file "
    "system with access lists, such as ext4 or XFS.",
)
SANDBOX_OPEN = Reason(
    "E_SANDBOX_OPEN",
    "the process that would run a study's code is not confined: it can reach {what}",
    "Start it through the node or as fedthorax-app@.service, as docs/operations.md says; keep the hospital's files "
    "out of folders that hold programs.",
)
SANDBOX_NONE = Reason(
    "W_SANDBOX_NONE",
    "nothing keeps a study's code from the network and from this machine's files",
    "Install bubblewrap and set [sandbox] kind in site.toml to bwrap.",
)

# --- moving a server --------------------------------------------------------------------------------------

SERVER_MOVED = Reason(
    "E_SERVER_MOVED",
    "this server was exported, and its study goes on elsewhere",
    "Two servers with one roster would part ways. If nobody imported the archive or ever will: delete the file MOVED "
    "in the server's folder, and this one goes on.",
)
SERVER_ADDRESS = Reason(
    "E_SERVER_ADDRESS",
    "this is no address of a server",
    "Give the name and the port that the study's office sent, as in study.example:8443, without https://.",
)
SERVER_RUNS = Reason(
    "E_SERVER_RUNS",
    "the server is running, or another process has its port {port}",
    "Stop it first, best just after a round: what a round under way has learnt is not carried, and it is done again.",
)
IMPORT_FOLDER = Reason(
    "E_IMPORT_FOLDER",
    "the folder is not empty",
    "Give one that does not exist yet, or an empty one.",
)
IMPORT_UNFINISHED = Reason(
    "E_IMPORT_UNFINISHED",
    "an import into this folder is under way, or was broken off",
    "If none is under way: delete the folder, and import the archive again.",
)
ARCHIVE_EXISTS = Reason(
    "E_ARCHIVE_EXISTS",
    "a file of this name is there already",
    "Give another name, or move that file away.",
)
ARCHIVE_FORMAT = Reason(
    "E_ARCHIVE_FORMAT",
    "this is no archive of a study's server, or one of another version's format",
    "Import it with the version that exported it; `tar -tf` shows what a file holds.",
)
ARCHIVE_DAMAGED = Reason(
    "E_ARCHIVE_DAMAGED",
    "the archive is damaged or cut short, or a file changed while it was exported",
    "Copy it again and compare its SHA-256 with what the export printed; if it differs there too, export again.",
)
MOVE_PATH = Reason(
    "E_MOVE_PATH",
    "the archive holds what no export writes: a path out of its folder, a link, a device, two files in one place",
    "Do not use it, and ask whoever sent it where it comes from.",
)
ARCHIVE_NAME = Reason(
    "E_ARCHIVE_NAME",
    "a file's name is too long for the archive (255 characters), or the file too large (8 GiB)",
    "Rename it or take it out; it is one that somebody added, for no run writes such files.",
)
PASSPHRASE = Reason(
    "E_PASSPHRASE",
    "the passphrase cannot be used: {problem}",
    "Give it when asked, or in a file with --passphrase-file; it is the one with which the archive was exported.",
)
MOVE_LINK = Reason(
    "E_MOVE_LINK",
    "the server's folder of runs holds a link or something else that is not a plain file",
    "Put the file itself in the link's place, or take it out.",
)
MOVE_WRITE = Reason(
    "E_MOVE_WRITE",
    "a file could not be read or written; nothing half-made is left",
    "Free space on the disk or correct its permissions, then repeat the command.",
)
MOVE_LOST = Reason(
    "E_MOVE_LOST",
    "what was written is not what the archive holds: {what}; all of it was taken out again",
    "Nothing is lost: the archive is whole. Repeat the command, with another version of MLflow if it is MLflow's.",
)
MLFLOW_SILENT = Reason(
    "E_MLFLOW_SILENT",
    "MLflow does not answer, or does not have all of the runs' figures yet",
    "Set MLFLOW_TRACKING_URI, and its user and password if it asks for them, as the server has them; start the "
    "tracking server that it names; then repeat the command.",
)
MLFLOW_TAKEN = Reason(
    "E_MLFLOW_TAKEN",
    "this MLflow has another experiment or model named {name} (perhaps among the deleted)",
    "Rename it there (a deleted one: mlflow gc), or give the study an MLflow of its own.",
)
MLFLOW_SOURCE = Reason(
    "E_MLFLOW_SOURCE",
    "version {version} of the model {model} in MLflow does not come from a run of its study",
    "Delete that version, or register it from one of the study's runs.",
)

# --- runs -------------------------------------------------------------------------------------------------

RUN_UNKNOWN = Reason(
    "E_RUN_UNKNOWN",
    "the server knows no such run",
    "fedthorax study list names them; a run belongs to the server folder that it was started on (--server).",
)
RESULTS = Reason(
    "E_RESULTS",
    "the run has no results yet, or another version's",
    "They are written when the last round is over: fedthorax study show RUN. A run that was stopped can be resumed.",
)
CANDIDATE_OTHER = Reason(
    "E_CANDIDATE_OTHER",
    "the model in the run's folder is not the one that its results are about",
    "Bring the run's folder back from the backup of the server's folder, or run the study again.",
)
AUDIT_FLAGS = Reason(
    "E_AUDIT_FLAGS",
    "the audit gave reasons to distrust the model: {flags}",
    "Read them in `fedthorax study report RUN`. --despite-flags with a reason releases it; its card then says both.",
)
RELEASE_EXISTS = Reason(
    "E_RELEASE_EXISTS",
    "there is something at the release's place already",
    "A signed release is never changed: give --out another folder, or move that one away.",
)
STUDY_EXISTS = Reason(
    "E_STUDY_EXISTS",
    "{file} is there already",
    "Give another name, or move it away first: a study that was run belongs to its figures.",
)
RUN_FILES = Reason(
    "E_RUN_FILES",
    "{file} of the run is damaged, or another version's",
    "Bring it back from the backup of the server's folder, or use the release of fedthorax that wrote it.",
)
RUN_UNDER_WAY = Reason(
    "E_RUN_UNDER_WAY",
    "the run is under way",
    "Watch it with `fedthorax study follow RUN`, or end it with `fedthorax study stop RUN`.",
)
RUN_ENDED = Reason(
    "E_RUN_ENDED",
    "the run is not under way: it is {state}",
    "`fedthorax study show RUN` tells what it found; `fedthorax study resume RUN` goes on with one that was stopped.",
)
RUNS_UNLIKE = Reason(
    "W_RUNS_UNLIKE",
    "the runs differ in {what}, so their figures are not of the same question",
    "Compare runs over the same sites with the same preprocessing, synthetic ones with synthetic ones.",
)
RUN_LEFT_OUT = Reason(
    "W_RUN_LEFT_OUT",
    "{run} has no results to compare: it is {state}",
    "Compare it when it is complete; `fedthorax study resume RUN` goes on with one that was stopped.",
)
TRACKING_SILENT = Reason(
    "W_TRACKING_SILENT",
    "MLflow does not answer; what it is to have waits",
    "Start MLflow again: what waits is handed over with the next round, or with the next run on this server.",
)
TRACKING_ACCESS = Reason(
    "W_TRACKING_ACCESS",
    "MLflow does not let this user in; what it is to have waits",
    "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where the server is started, and let the user write to "
    "the study's experiment and model.",
)
CONTROL_FAILED = Reason(
    "E_CONTROL_FAILED",
    "the server refused the request: {answer}",
    "Read DIR/logs/superlink.log on the server's machine.",
)
NO_SITES = Reason(
    "E_NO_SITES",
    "a simulation needs at least one site folder, and each must exist",
    "Give the folders that fedthorax node init made.",
)

# --- replies and rounds -----------------------------------------------------------------------------------

SITE_MISSING = Reason(
    "E_SITE_MISSING",
    "the site did not answer in time",
    "The round went on without it; look at the site's node and its log.",
)
SITE_FAILED = Reason(
    "E_SITE_FAILED",
    "the site reported a failure",
    "Its own log holds the details, which do not leave the site.",
)
REPLY_TWICE = Reason(
    "E_REPLY_TWICE",
    "the site answered more than once in one round",
    "None of its answers counts; look at the site's node.",
)
REPLY_RECORDS = Reason(
    "E_REPLY_RECORDS",
    "the reply does not hold exactly the records that were asked for",
    "Install the same version of fedthorax at the site and at the server.",
)
REPLY_KEYS = Reason(
    "E_REPLY_KEYS",
    "the reply names other tensors than the model has",
    "Install the same version of fedthorax at the site and at the server.",
)
REPLY_SHAPE = Reason(
    "E_REPLY_SHAPE",
    "a tensor of the reply has another shape or dtype than the model's",
    "Install the same version of fedthorax at the site and at the server.",
)
REPLY_NOT_FINITE = Reason(
    "E_REPLY_NOT_FINITE",
    "a tensor of the reply holds NaN or infinity",
    "Training diverged at the site: lower the learning rate, and look at the site's cohort.",
)
REPLY_VARIANCE = Reason(
    "E_REPLY_VARIANCE",
    "a variance of the reply is negative",
    "Look at the site's log; such a variance cannot come from data.",
)
REPLY_METRICS = Reason(
    "E_REPLY_METRICS",
    "the reply's metrics are not exactly the finite numbers that were asked for",
    "Install the same version of fedthorax at the site and at the server.",
)
REPLY_EXAMPLES = Reason(
    "E_REPLY_EXAMPLES",
    "the reply's number of examples is not the number of patients that it is over, or beyond the study's limit",
    "Repeat the task if the cohort changed while it ran; else look at the cohort's size and at the study's limit.",
)
UPDATE_NORM = Reason(
    "E_UPDATE_NORM",
    "the length of the site's update is not a finite number",
    "Look at the site's data and at the study's learning rate.",
)
QUORUM = Reason(
    "E_QUORUM",
    "the study needs {quorum} sites in each round and has {present}",
    "See in the last rounds' report which sites are missing or refused and why, then resume the study.",
)

HANDSHAKE = Reason(
    "E_HANDSHAKE",
    "what the site tells of itself is not its version, two hashes and the band of its patients",
    "Install the same version of fedthorax at the site and at the server.",
)
HANDSHAKE_QUORUM = Reason(
    "E_HANDSHAKE_QUORUM",
    "{present} sites answered before round 1, and the study needs {quorum} in each ({others})",
    "Mend at those sites what their codes say, or wait for them, then start the study again.",
)
SITES_UNLIKE = Reason(
    "E_SITES_UNLIKE",
    "the sites are not alike: {differences}",
    "Version or golden volume: install the server's version of fedthorax and of its libraries at these sites. Data "
    "contract: let the sites agree on [join] and on what severe means in site.toml. Then start the study again.",
)

# --- robust rounds ----------------------------------------------------------------------------------------

REPLY_LEDGER = Reason(
    "E_REPLY_LEDGER",
    "what the reply says about the site's ledger is not a hash and a number of lines",
    "Install the same version of fedthorax at the site and at the server.",
)
REPLY_LEDGER_CUT = Reason(
    "E_REPLY_LEDGER_CUT",
    "the site's ledger has fewer lines than when it was last told of, or is no longer told of",
    "Ask the site to verify its ledger (fedthorax node ledger --verify). If it restored an older one, begin a new run.",
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
MODEL_NOT_FINITE = Reason(
    "E_MODEL_NOT_FINITE",
    "the replies were finite, but the model made of them is not",
    "Lower the learning rates of strategy and sites, then resume the study.",
)
SERVER_DATABASE = Reason(
    "E_SERVER_DATABASE",
    "the server's database {file} is damaged",
    "Keep the file, put its newest backup in its place as docs/reliability.md says, and start the server again.",
)
SERVER_DISK = Reason(
    "E_SERVER_DISK",
    "a file of the run could not be written at the server",
    "Free space on the server's disk or correct its permissions, then resume the study.",
)

# --- strategies and checkpoints ---------------------------------------------------------------------------

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

RUN_FAILED = Reason(
    "E_RUN_FAILED",
    "the run {run} ended as {status}",
    "Read what it said above; mend that, then go on with `fedthorax study resume`.",
)
NO_SERVER_SET = Reason(
    "E_NO_SERVER_SET",
    "this site belongs to no study yet",
    "Set [server] address in site.toml and put the study's ca.crt where ca_certificate says.",
)

# --- the ledger -------------------------------------------------------------------------------------------

LEDGER_WRITE = Reason(
    "E_LEDGER_WRITE",
    "the ledger could not be written, and what it does not record is not done",
    "Free space on the disk, or give the user who runs the node the folder SITE_DIR/ledger.",
)
LEDGER_BROKEN = Reason(
    "E_LEDGER_BROKEN",
    "line {line} of the ledger is not as it was written: it, or a line before it, was changed, removed or put in",
    "Find out who changed it. Keep the file as evidence, and move it away (or bring back its backup) to go on.",
)
LEDGER_TORN = Reason(
    "W_LEDGER_TORN",
    "the ledger's last line was incomplete, as a power cut leaves it; it was set aside",
    "Compare ledger.torn in SITE_DIR/ledger with the time of the power cut; without one, somebody cut the file.",
)
LEDGER_INCOMPLETE = Reason(
    "E_LEDGER_INCOMPLETE",
    "the ledger's last line is incomplete, as a power cut leaves it",
    "Start the node: it sets the line aside and writes down that it did. Then verify again.",
)
LEDGER_CUT = Reason(
    "E_LEDGER_CUT",
    "the ledger lacks its line {line} as the server was told of it: its end was cut, or all of it was written anew",
    "Bring back the ledger's backup. If there is none, tell the study's coordinator before the node takes part again.",
)
LEDGER_RECORD = Reason(
    "E_LEDGER_RECORD",
    "the record is not a run's history.json, or names no head of this site's ledger",
    "Ask the study's coordinator for the history.json of a run in which this site took part.",
)

# --- apps and their approval ------------------------------------------------------------------------------

APPROVALS = Reason(
    "E_APPROVALS",
    "approvals.json is damaged, or others than its owner may change it; until it is mended no app runs",
    "Run the node and its commands as the user who owns the site; bring back SITE_DIR/apps from the backup, or move "
    "approvals.json away and approve again.",
)
APPROVALS_BUSY = Reason(
    "E_APPROVALS_BUSY",
    "another command is changing the approvals",
    "Try again in a moment.",
)
APP_UNKNOWN = Reason(
    "E_APP_UNKNOWN",
    "no app is known here by this hash, and no file or folder has this name",
    "`fedthorax node apps SITE_DIR` lists the apps; give a hash (8 digits or more), a .fab file or an app's folder.",
)
APP_AMBIGUOUS = Reason(
    "E_APP_AMBIGUOUS",
    "{count} apps have hashes that begin so",
    "Give more digits of the hash.",
)
APP_ARCHIVE = Reason(
    "E_APP_ARCHIVE",
    "the app is not a readable archive of Flower's (FAB)",
    "Ask whoever made the study for an app that `flwr build` or fedthorax has built.",
)
APP_SIZE = Reason(
    "E_APP_SIZE",
    "the app is larger than {megabytes} MB, packed or unpacked, or has more than {files} files",
    "An app holds code alone: ask whoever made the study for one without data and models.",
)
APP_PATH = Reason(
    "E_APP_PATH",
    "the app holds a link, or two files of one name, or a name that could reach outside its folder",
    "Do not approve it. No honest tool makes such an app: ask whoever sent it.",
)
APP_MANIFEST = Reason(
    "E_APP_MANIFEST",
    "the app's files are not exactly those that its own list (.info/CONTENT) names, with these hashes",
    "Do not approve it; ask whoever made the study for the app as it was built.",
)
APP_PACKING = Reason(
    "E_APP_PACKING",
    "the app's archive is not packed as Flower packs it, so that it could hold bytes that belong to none of its files",
    "Do not approve it; ask whoever made the study for the app as `flwr build` or fedthorax has built it.",
)
APP_SHADOW = Reason(
    "E_APP_SHADOW",
    "the app brings a module named {name}, which would take the place of the one that is installed here",
    "Do not approve it; whoever made the study renames the module, or leaves it out: each site has its own libraries.",
)
APP_TEXT = Reason(
    "E_APP_TEXT",
    "a file of the app is not text in UTF-8, so nobody can read what would run",
    "Ask whoever made the study for an app of sources in UTF-8 alone.",
)
APP_CONFIG = Reason(
    "E_APP_CONFIG",
    "the app's pyproject.toml lacks or spoils what Flower needs: {problem}",
    "Ask whoever made the study to correct it; `flwr build` names what is wrong.",
)

# --- the gateway ------------------------------------------------------------------------------------------

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
GATEWAY_FAILED = Reason(
    "E_GATEWAY_FAILED",
    "the site's gateway failed, and so let nothing pass",
    "Read the end of logs/gateway.log in the site's folder.",
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
RUN_CONFIG = Reason(
    "E_RUN_CONFIG",
    "the run's configuration is not a study as this release knows it",
    "Install the same version of fedthorax at the site and at the server.",
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
BEGIN_UNLIKE = Reason(
    "E_BEGIN_UNLIKE",
    "the release that the study begins from has another network or preprocessing, or weights that training does not "
    "make",
    "Give the study the [network] and [preprocessing] of the release's own study, as they stand in its model.json.",
)
BEGIN_UNKNOWN = Reason(
    "E_BEGIN_UNKNOWN",
    "the server has no release of the name that the study begins from",
    "Put the release's folder into SERVER_DIR/releases; begin_from is the SHA-256 that its card.md tells first.",
)
RELEASE_UNKNOWN = Reason(
    "E_RELEASE_UNKNOWN",
    "no release with this name is known at this site",
    "`fedthorax node releases` lists those that were decided on, by their SHA-256.",
)
STUDY_UNKNOWN = Reason(
    "E_STUDY_UNKNOWN",
    "no study with this name or digest is known at this site",
    "`fedthorax node studies` lists those that were asked for; a study file can be given too.",
)
STUDY_AMBIGUOUS = Reason(
    "E_STUDY_AMBIGUOUS",
    "{count} studies begin with these digits",
    "Give more digits of the digest.",
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
THRESHOLDS = Reason(
    "E_THRESHOLDS",
    "the calibration or the thresholds of a test are not those that the sites' calibrations give",
    "Install the same version of fedthorax at the site and at the server. If they are the same, the server chose them: "
    "ask the study's office why.",
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
EMBEDDINGS = Reason(
    "E_EMBEDDINGS",
    "this site lets no statistics of the network's features out",
    "The audit goes on without this site. To allow them, set embedding_statistics in [gateway] of site.toml.",
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

# --- the shortcut audit -----------------------------------------------------------------------------------

SHORTCUT_TAGS = Reason(
    "W_SHORTCUT_TAGS",
    "acquisition tags alone tell {label} at this site: AUROC {auroc}, 95 % interval from {low}",
    "Find out which scanner or protocol goes with the label there; show the figures without that site, or by scanner.",
)
SHORTCUT_OUTSIDE = Reason(
    "W_SHORTCUT_OUTSIDE",
    "the model tells {label} with the lungs blanked out at this site: AUROC {auroc}, 95 % interval from {low}",
    "Do not release it before it is known what the model reads beside the lungs: lines, supports, arms, the scanner.",
)

# --- attacks on a release ---------------------------------------------------------------------------------

ATTACK_STUDY = Reason(
    "E_ATTACK_STUDY",
    "the model's network, preprocessing or privacy are not those of the study",
    "Give --study with the file of the study that made this model; a private model needs it.",
)
ATTACK_CONTROL = Reason(
    "E_ATTACK_CONTROL",
    "an attack that must succeed did not, so the figures of {attack} could not be trusted",
    "Do not read them as safe; the card says so too. Report it with the versions of fedthorax and torch.",
)
