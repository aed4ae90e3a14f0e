"""Federated learning between hospitals: Flower apps, strategies, certificates, processes, tracking, command line."""
