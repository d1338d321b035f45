"""What the kernel counts of the TLS that it does itself."""

from __future__ import annotations

import re
from pathlib import Path


def taken_over() -> int:
    """Connections whose sending the kernel has taken over since it was started (TlsTxSw of /proc/net/tls_stat)."""
    found = re.search(r"^TlsTxSw\s+([0-9]+)$", Path("/proc/net/tls_stat").read_text(), re.M)
    assert found is not None, "/proc/net/tls_stat does not count TlsTxSw"
    return int(found[1])
