"""The ClientApp: what a hospital does in a round, and the tasks that it runs on its own data.

May import `protocol` and what is below. Begin with `client_app`.
"""
