"""What a site runs: its own installed fedthorax."""

from federation.client.client_app import app

__all__ = ["app"]
