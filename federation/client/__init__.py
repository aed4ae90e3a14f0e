"""The ClientApp: the tasks that a hospital runs on its own data in a round.

May import `protocol` and the rooms below it. Begin with `client_app`.
"""
