"""The gateway: the hospital's own process between its node and the study's server. It alone speaks to the server.

What comes in is looked at before the node sees it, and what goes out is not passed on but composed anew from what was
checked. Whatever is not named is refused, and every decision is a line of the ledger before it takes effect.

SITE_DIR/gateway/   what is on its way, deleted once it has arrived; shapes of models; times of the last rounds
"""
