"""A hospital's site: its folder, its settings (site.toml), its keys, and what files it has.

Identifiers become pseudonyms here and nowhere later. May import `preprocessing`, `imaging`, `records` and `system`.
Begin with `folder`.
"""
