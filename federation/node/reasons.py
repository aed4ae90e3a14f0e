"""Reasons why a node or its sandbox does not start."""

from models.refusal import Reason

NOT_ENROLLED = Reason(
    "E_NOT_ENROLLED",
    "the study's server does not accept this node's key",
    "If a node with this key runs elsewhere, stop it. If one was killed, the server counts it as connected for one "
    "minute, and the node tries again by itself. If it lasts, ask the study's office whether this site was revoked; "
    "with a new code from there, join again.",
)
NODE_RUNNING = Reason(
    "E_NODE_RUNNING",
    "the node of this site is running already",
    "See what it does with `fedthorax node status`. Stop it before you start another one.",
)
NODE_FORGOTTEN = Reason(
    "E_NODE_FORGOTTEN",
    "the study's server no longer knows this node's id: the server was moved or has lost its database",
    "Restart the node, so that it registers again. `fedthorax node start` does this automatically.",
)
NODE_ENDED = Reason(
    "E_NODE_ENDED",
    "the node ended unexpectedly",
    "Read the end of logs/node.log in the site's folder, fix the cause and start the node again.",
)
NODE_LOOP = Reason(
    "E_NODE_LOOP",
    "the node met an error of its connection to the gateway that it does not repeat",
    "`fedthorax node start` restarts the node automatically. If this happens again and again, read the end of "
    "logs/node.log and logs/gateway.log in the site's folder.",
)
TASK_DIED = Reason(
    "E_TASK_DIED",
    "the operating system ended the process that worked on a task, most likely because memory ran out",
    "Free memory on this machine. The node takes the next round's task automatically.",
)
SANDBOX_MISSING = Reason(
    "E_SANDBOX_MISSING",
    "bubblewrap is not installed; it blocks a study's code from the network and from other files",
    "Install the package bubblewrap (0.8 or later), or set [sandbox] kind in site.toml to systemd.",
)
SANDBOX = Reason(
    "E_SANDBOX",
    "this system does not allow bubblewrap to confine a study's code",
    "Allow user namespaces for the user who runs the node (sysctl, AppArmor; rarely possible in containers), or set "
    "[sandbox] kind in site.toml to systemd. To run without a sandbox, set it to none and name in accepted_by who "
    "accepts that.",
)
SANDBOX_ACCESS = Reason(
    "E_SANDBOX_ACCESS",
    "the user who runs a study's code could not get access to the files that it needs",
    "Install the package acl and create the user fedthorax-app, as docs/operations.md says. The site must be on a file "
    "system with access control lists, such as ext4 or XFS.",
)
SANDBOX_OPEN = Reason(
    "E_SANDBOX_OPEN",
    "the process that would run a study's code is not confined: it can reach {what}",
    "Start it through the node, as fedthorax-app@.service or in a container without a network, as docs/operations.md "
    "and docs/containers.md say. Keep the hospital's files out of folders with programs, and let it open only the GPU "
    "that [compute] names.",
)
SANDBOX_NONE = Reason(
    "W_SANDBOX_NONE",
    "a study's code runs without a sandbox: it can use the network and read this machine's files",
    "Install bubblewrap and set [sandbox] kind in site.toml to bwrap.",
)
KEEP_FOLDER = Reason(
    "E_KEEP_FOLDER",
    "the folder for what is kept exists already, or is inside the site's folder",
    "Name a new folder outside the site's folder.",
)
NETWORK_TRIAL = Reason(
    "E_NETWORK_TRIAL",
    "a part of the package could not be tried in the sandbox",
    "The text above says why, if the package's code said it. Ask its author; docs/own-networks.md states the rules.",
)
