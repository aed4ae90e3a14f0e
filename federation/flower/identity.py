"""The identity under which Flower makes messages in this process."""

from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "TaskIdentity",
]
