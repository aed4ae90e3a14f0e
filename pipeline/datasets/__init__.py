"""Public data sets as sites: each importer creates site folders from a published layout, for research on federations.

The data is not moved or changed: a site links to its scans. Unusable patients are counted by reason.
"""
