"""The players' scripts, for every page that plays a title; `make setup` copies them here, and the wheel has them."""

from __future__ import annotations

from pathlib import Path

SCRIPTS = Path(__file__).parent / "assets"
"""The directory that holds them."""
DASH_JS, HLS_JS = "dash.all.min.js", "hls.min.js"
