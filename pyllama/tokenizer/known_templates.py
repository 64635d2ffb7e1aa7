"""Chat templates that are known to be harmless, by digest.

Written by tools/known_templates.py; docs/api.md says what was looked at.
"""

import hashlib


def is_known(source: str) -> bool:
    return False
