"""The browser, and a loud word where a check had to be left out."""

from __future__ import annotations

import os

import pytest

from tests.e2e.conftest import browser
from tests.e2e.test_encryption import licences

__all__ = ["browser", "licences"]
SCHEMA = "OCA_DASH_SCHEMA"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was left out is no news only to those who left it out."""
    if not os.environ.get(SCHEMA):
        terminalreporter.section("LEFT OUT", sep="!", red=True, bold=True)
        terminalreporter.write_line(
            f"No MPD was held against the DASH schema: set {SCHEMA} to the path of DASH-MPD.xsd, of the repository "
            "MPEGGroup/DASHSchema on GitHub"
        )
