"""The log: readable lines on a terminal, JSON lines for journald and for the file."""

import logging
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import Processor

from crypto_lake.config import ConfigError, Settings

FILE_BYTES, FILES = 50 * 1024 * 1024, 5

# What every line gets, ours and those of the libraries.
SHARED: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def configure(settings: Settings, stderr: TextIO | None = None) -> None:
    """Send the log where the settings say; a second call replaces the first.

    Modules write `log = structlog.get_logger()`. Raises `ConfigError` when the log file cannot be opened.
    """
    handlers: list[logging.Handler] = []
    if settings.log_to_terminal:
        handlers.append(_terminal(stderr or sys.stderr))
    if settings.log_to_file:
        handlers.append(_file(settings.state / "log" / "crypto-lake.jsonl"))
    _install(handlers or [_nowhere()])
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *SHARED, ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def _install(handlers: list[logging.Handler]) -> None:
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each.formatter, ProcessorFormatter)]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        root.addHandler(handler)
    # Libraries only when something is wrong; ours also when something happens.
    root.setLevel(logging.WARNING)
    logging.getLogger("crypto_lake").setLevel(logging.INFO)


def _terminal(stream: TextIO) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_coloured() if stream.isatty() else _json())
    return handler


def _file(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=FILES, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"LOG_TO_FILE=true: {path} cannot be written: {error.strerror}") from None
    handler.setFormatter(_json())
    return handler


def _nowhere() -> logging.Handler:
    # With no handler at all the standard library would write warnings to stderr by itself.
    handler = logging.NullHandler()
    handler.setFormatter(_json())
    return handler


def _json() -> ProcessorFormatter:
    # Tracebacks as text: structlog's dictionaries hold local variables, and with them the API key.
    return _formatter(
        structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False, sort_keys=False)
    )


def _coloured() -> ProcessorFormatter:
    return _formatter(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))


def _formatter(*last: Processor) -> ProcessorFormatter:
    return ProcessorFormatter(foreign_pre_chain=SHARED, processors=[ProcessorFormatter.remove_processors_meta, *last])
