"""Brings records from the hospital's systems to the site: received over the network, or fetched.

May import `site`, `records` and `system`. Begin with `result_listener` (HL7 v2 over MLLP).
"""
