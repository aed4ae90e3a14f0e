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
    "the server's certificate is valid only until {until}",
    "Initialise a new server folder, give its ca.crt to the hospitals and enrol them again.",
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
SERVER_CONFIG = Reason(
    "E_SERVER_CONFIG",
    "server.toml: {key}: {problem}",
    "Correct that line of server.toml; the comments in the file say what each key means.",
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
SERVER_EXPOSED = Reason(
    "W_SERVER_EXPOSED",
    "the server listens beyond this machine, on {host}: whoever reaches its port can send code to the sites",
    "Let a firewall admit the hospitals alone, or set host in server.toml back to 127.0.0.1.",
)
SITE_NAME = Reason(
    "E_SITE_NAME",
    "a site's name is made of the letters a to z, digits and hyphens",
    "Choose a name such as hospital-a; it is shown to every participant, so it names no person.",
)
SITE_NAME_TAKEN = Reason(
    "E_SITE_NAME_TAKEN",
    "a site named {site} is already enrolled with another key",
    "Choose another name; a site that lost its key is enrolled under a new name.",
)
ALREADY_ENROLLED = Reason(
    "E_ALREADY_ENROLLED",
    "this key is already enrolled, for the site {site}",
    "Nothing is left to do if that is the site you mean; each site needs a key of its own.",
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

# --- runs -------------------------------------------------------------------------------------------------

RUN_UNKNOWN = Reason(
    "E_RUN_UNKNOWN",
    "the server knows no such run",
    "Check the number; a run belongs to the server folder that it was started on.",
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
    "a batch-norm variance of the reply is negative",
    "Look at the site's training log; such a variance cannot come from data.",
)
REPLY_METRICS = Reason(
    "E_REPLY_METRICS",
    "the reply's metrics are not exactly the finite numbers that were asked for",
    "Install the same version of fedthorax at the site and at the server.",
)
REPLY_EXAMPLES = Reason(
    "E_REPLY_EXAMPLES",
    "the reply's number of examples is not between 1 and the study's limit",
    "Look at the size of the site's cohort and at the limit in the study's file.",
)
UPDATE_NORM = Reason(
    "E_UPDATE_NORM",
    "the site's update is far larger than those of the other sites",
    "Look at the site's data and learning rate; if they are right, raise the study's norm factor.",
)
QUORUM = Reason(
    "E_QUORUM",
    "the study needs {quorum} sites in each round and has {present}",
    "See in the last rounds' report which sites are missing or refused and why, then resume the study.",
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
