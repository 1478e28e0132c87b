"""Names of test cases."""

from __future__ import annotations

import re


def without_address(value: object) -> str:
    """Name a parameter by its `ascii` without addresses: processes that share a test run have to agree on the names."""
    return re.sub(r" at 0x[0-9a-f]+", "", ascii(value))
