"""Makes an API token."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.utils import timezone

from accounts import audit, tokens
from accounts.models import User


class Command(BaseCommand):
    help = "Makes an API token for a user and prints it, alone, on the last line. It is not shown again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user", help="the user's name")
        parser.add_argument("--name", default="command line", help="what the token is for")
        parser.add_argument(
            "--scope",
            action="append",
            choices=tokens.SCOPES,
            help=f"what it may do; may be repeated (default: {', '.join(tokens.DEFAULT_SCOPES)})",
        )
        parser.add_argument("--days", type=int, help="how long it is valid (default: until it is revoked)")
        parser.add_argument("--json", action="store_true", help="print one JSON object instead")

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(username=options["user"]).first()
        if user is None:
            raise CommandError(f"There is no user {options['user']!r}.")
        if not user.is_active:
            raise CommandError(f"The user {options['user']!r} is not active.")
        days = options["days"]
        if days is not None and not 1 <= days <= 36_500:
            raise CommandError("--days takes 1 to 36500.")
        expires_at = None if days is None else timezone.now() + timedelta(days=days)
        try:
            with transaction.atomic():
                token, plaintext = tokens.create(
                    user, options["name"], options["scope"] or tokens.DEFAULT_SCOPES, expires_at
                )
                audit.record(
                    None, "token.created", token.prefix, user=user.get_username(), scopes=token.scopes
                )
        except ValueError as error:
            raise CommandError(str(error)) from None
        until = expires_at.isoformat(timespec="seconds") if expires_at else None
        if options["json"]:
            shown = {
                "id": token.pk,
                "user": user.get_username(),
                "name": token.name,
                "scopes": token.scopes,
                "expires_at": until,
                "token": plaintext,
            }
            self.stdout.write(json.dumps(shown))
            return
        self.stdout.write(
            f"{token.name}, for {user.get_username()}: {', '.join(token.scopes)}; valid until {until or 'revoked'}"
        )
        self.stdout.write(plaintext)
