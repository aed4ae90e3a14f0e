"""How a SHA-256 digest is written: 64 lower-case hexadecimal digits."""

import re

SHA256 = re.compile(r"[0-9a-f]{64}")
