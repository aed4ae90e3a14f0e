"""How hospitals learn together: Flower apps, strategy, certificates, processes, tracking, the command line."""
