#!/usr/bin/env python
"""CloudStore's command line: everything an operator does, as `manage.py COMMAND`."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloudstore.settings")
    from django.core.management import execute_from_command_line

    from cloudstore.config import WrongConfiguration

    try:
        execute_from_command_line(sys.argv)
    except WrongConfiguration as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
