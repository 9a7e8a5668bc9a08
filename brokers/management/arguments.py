"""Options and secrets of a broker on the command line."""

from __future__ import annotations

import os
import sys
from typing import Any

from django.core.management.base import CommandError, CommandParser

from brokers import limits
from brokers.models import Broker, Traffic


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


def add_limit_arguments(parser: CommandParser) -> None:
    group = parser.add_argument_group("limits", "Sizes as 500M or 2Gi; `none` removes a limit.")
    for name in limits.FIELDS:
        option = f"--{name.replace('_', '-')}"
        help_text = str(getattr(Broker._meta.get_field(name), "help_text", ""))
        if name == "monthly_hard":
            group.add_argument(option, choices=("yes", "no"), help=help_text)
        elif name == "monthly_counts":
            group.add_argument(option, choices=Traffic.values, help=help_text)
        else:
            group.add_argument(option, metavar="N", help=help_text)


def read_limits(options: dict[str, Any]) -> dict[str, Any]:
    """The limits that were given. Raises CommandError."""
    given: dict[str, Any] = {}
    for name in limits.FIELDS:
        text = options.get(name)
        if text is None:
            continue
        try:
            given[name] = _limit(name, text)
        except ValueError as error:
            raise CommandError(f"--{name.replace('_', '-')}: {error}") from None
    return given


def _limit(name: str, text: str) -> Any:
    if name == "monthly_hard":
        return text == "yes"
    if name == "monthly_counts":
        return text
    if text.lower() == "none":
        return None
    if name == "max_requests":
        return float(text)
    return limits.parse_size(text)
