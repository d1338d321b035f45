"""Logs of every program: one JSON object per line on stderr, which systemd or a file takes."""

from __future__ import annotations

import logging
import sys

import structlog


def start(program: str) -> None:
    """Send structlog and the standard library's logs to stderr, each line carrying the program's name."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(program=program)
    # Libraries (aiohttp, asyncio) log through the standard library; their warnings matter, their chatter does not.
    logging.basicConfig(
        level=logging.WARNING,
        stream=sys.stderr,
        format='{"level":"%(levelname)s","logger":"%(name)s","event":"%(message)s"}',
    )
