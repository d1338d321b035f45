"""Tells systemd how we are (sd_notify): ready, reloading, stopping, still alive. Does nothing without systemd."""

from __future__ import annotations

import os
import socket
import time


def notify(*states: str) -> None:
    """Send states such as `READY=1` to the socket that systemd gave us (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            # A manager that does not read must not hold us up for good.
            sock.settimeout(1.0)
            # A leading @ stands for the NUL of the abstract namespace.
            sock.connect("\0" + address[1:] if address[0] == "@" else address)
            sock.sendall("\n".join(states).encode())
    except OSError:
        # Nobody listens any more: the service manager is restarting, and will look at us by itself.
        return


def reloading() -> None:
    """Say that a reload begins; newer service managers want the monotonic time in microseconds with it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_interval() -> float:
    """Seconds between two signs of life, half of what systemd waits; 0 if it does not wait for any."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdigit() else 0.0
