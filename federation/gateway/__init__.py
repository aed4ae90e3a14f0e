"""The gateway: the hospital's process between its Flower node and the study's server.

Only the gateway connects to the server. It checks every incoming message before the node receives it. It does not
forward the node's replies: it composes each outgoing message from the values that it checked. Anything that no rule
allows is refused. Every decision is written to the ledger before it takes effect.

Begin with `task_exchange`, which follows one task from the server to the node and back.

SITE_DIR/gateway/   data of the current task (deleted on delivery), schemas of studies, times of recent rounds
"""
