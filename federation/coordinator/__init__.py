"""The ServerApp: a study's rounds, the final evaluation, baselines and the shortcut audit.

May import `runs`, `strategy` and what is below. Begin with `server_app`, then `rounds`.
"""
