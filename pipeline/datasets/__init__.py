"""Public data sets as sites: each importer makes site folders of a published layout, to study federations with.

The data stays where it is and as it is: a site refers to its scans by links. Who has no use is counted, by reason.
"""
