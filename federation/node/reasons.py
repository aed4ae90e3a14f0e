"""Reasons why a node or its sandbox does not start."""

from models.refusal import Reason

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
