"""What another version would change in the folder of a site, a server or a clinic, and the way back.

`sites`, `servers` and `clinics` list the files with a format and what is under way; `plan` puts both together. May
import every room below it. Begin with `plan`.
"""
