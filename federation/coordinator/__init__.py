"""The ServerApp: the rounds of a study, the final evaluation, the baselines and the shortcut audit.

May import `runs`, `strategy` and what is below. Begin with `server_app`, then `rounds`.
"""
