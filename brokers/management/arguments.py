"""Options and secrets of a broker on the command line."""

from __future__ import annotations

import os
import sys
from typing import Any

from django.core.management.base import CommandError, CommandParser


def add_option_arguments(parser: CommandParser) -> None:
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="NAME alone reads the environment variable CLOUDSTORE_SECRET_NAME (in capitals), NAME=- a line of "
        "standard input; NAME=VALUE shows in the process list",
    )


def read_options(options: dict[str, Any]) -> dict[str, str]:
    """The driver's options and secrets. Raises CommandError."""
    given: dict[str, str] = {}
    for text in options["option"]:
        name, equals, value = text.partition("=")
        if not equals:
            raise CommandError(f"--option {name}: write NAME=VALUE")
        given[name] = value
    for text in options["secret"]:
        name, equals, value = text.partition("=")
        given[name] = _secret(name, value if equals else None)
    return given


def _secret(name: str, value: str | None) -> str:
    if value == "-":
        return sys.stdin.readline().rstrip("\r\n")
    if value is not None:
        return value
    variable = f"CLOUDSTORE_SECRET_{name.upper()}"
    if variable not in os.environ:
        raise CommandError(f"--secret {name}: the environment variable {variable} is not set")
    return os.environ[variable]
