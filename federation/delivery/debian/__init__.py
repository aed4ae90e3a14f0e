"""Control files of the Debian package: scripts of the maintainer, the question at a purge, lintian overrides."""
