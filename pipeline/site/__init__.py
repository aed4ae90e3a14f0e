"""Manages a hospital's site: its folder, its settings (site.toml), its keys and its data files.

Identifiers become pseudonyms here; later rooms see only pseudonyms. May import `preprocessing`, `imaging`, `records`
and `system`. Begin with `folder`.
"""
