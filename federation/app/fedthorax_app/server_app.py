"""What the server runs: its own installed fedthorax."""

from federation.coordinator.server_app import app

__all__ = ["app"]
