"""What all rooms need from the machine: whole files, locks, memory, templates, reasons.

May import `models` alone. Begin with `reasons`.
"""
