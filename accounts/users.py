"""Making users."""

from __future__ import annotations

import secrets

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from accounts import audit
from accounts.models import Plan, User


def create(
    username: str,
    *,
    password: str | None = None,
    email: str = "",
    staff: bool = False,
    superuser: bool = False,
    plan: Plan | None = None,
    actor: User | None = None,
) -> tuple[User, str]:
    """Makes a user -> (user, password). Without `password` a random one of 120 bits is made.

    Raises ValidationError for a name that is taken or not allowed, a bad address, a weak password. A
    superuser is staff. Adds the audit row "user.created".
    """
    user = User(
        username=username, email=email, is_staff=staff or superuser, is_superuser=superuser, plan=plan
    )
    if password is not None:
        validate_password(password, user)
    password = secrets.token_urlsafe(15) if password is None else password
    user.set_password(password)
    user.full_clean()
    try:
        with transaction.atomic():
            user.save()
            audit.record(actor, "user.created", username, staff=user.is_staff, superuser=superuser)
    except IntegrityError:  # somebody took the name since full_clean looked
        raise ValidationError({"username": "A user with that username already exists."}) from None
    return user, password
