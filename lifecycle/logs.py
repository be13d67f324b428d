"""Logs go to standard error: for a person on a terminal, as JSON elsewhere."""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logs(level: str = "info", *, as_json: bool | None = None) -> None:
    """Set up structlog once, at the start of a program.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        as_json: None means JSON unless standard error is a terminal.
    """
    if as_json is None:
        as_json = not sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
