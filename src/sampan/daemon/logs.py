"""Log lines of the daemon: one line each on standard error, as ``key=value`` or JSON."""

import json
import logging
import sys
import time


def _stamp(record: logging.LogRecord) -> str:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{moment}.{int(record.msecs):03d}Z"


class TextFormatter(logging.Formatter):
    """``time=… level=… from=… msg="…"``; a traceback follows in the same line, its line ends escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        line = f"time={_stamp(record)} level={record.levelname.lower()} from={record.name} msg={_quoted(record)}"
        if record.exc_info:
            line += f" trace={json.dumps(self.formatException(record.exc_info), ensure_ascii=False)}"
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        document = {
            "time": _stamp(record),
            "level": record.levelname.lower(),
            "from": record.name,
            "msg": record.getMessage(),
        }
        if record.exc_info:
            document["trace"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False)


def _quoted(record: logging.LogRecord) -> str:
    # JSON's escapes keep whatever a message quotes from outside on its line.
    return json.dumps(record.getMessage(), ensure_ascii=False)


def start(level: str, form: str) -> None:
    """Write the log of ``sampan`` and of all libraries to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    set_level(level)


def set_level(level: str) -> None:
    """Set the level of ``sampan``'s own lines; libraries stay at warnings."""
    logging.getLogger("sampan").setLevel(level.upper())
