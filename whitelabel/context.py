"""What every page knows about its face."""

from __future__ import annotations

from dataclasses import dataclass

from django.conf import settings
from django.http import HttpRequest


@dataclass(frozen=True)
class Brand:
    """The name over the door and one line below it."""

    name: str
    slogan: str


def brand(request: HttpRequest) -> dict[str, Brand]:
    """Template context processor: `brand`."""
    return {"brand": Brand(name=settings.CLOUDSTORE_NAME, slogan="Your files, kept in more than one place.")}
