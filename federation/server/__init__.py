"""The study's server: its folder, its start and its certificate. Begin with `start`."""
