"""Makes a user."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts import users


class Command(BaseCommand):
    help = "Makes a user. Without --password-stdin a random password is made and printed once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user", help="the new user's name")
        parser.add_argument("--email", default="")
        parser.add_argument("--staff", action="store_true", help="may open the admin site")
        parser.add_argument("--superuser", action="store_true", help="may do everything there")
        parser.add_argument(
            "--password-stdin", action="store_true", help="read the password from standard input"
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object instead")

    def handle(self, *args: Any, **options: Any) -> None:
        given = None
        if options["password_stdin"]:
            given = sys.stdin.readline().rstrip("\r\n")
        try:
            user, password = users.create(
                options["user"],
                password=given,
                email=options["email"],
                staff=options["staff"],
                superuser=options["superuser"],
            )
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from None
        shown = {
            "user": user.get_username(),
            "email": user.email,
            "staff": user.is_staff,
            "superuser": user.is_superuser,
        }
        if given is None:
            shown["password"] = password
        if options["json"]:
            self.stdout.write(json.dumps(shown))
            return
        self.stdout.write(f"user: {user.get_username()}")
        if given is None:
            self.stdout.write(f"password: {password}")
