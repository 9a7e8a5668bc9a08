"""A driver with a secret, in memory."""

from __future__ import annotations

from django import forms

from brokers.drivers.memory import MemoryBroker, MemoryOptions

CANARY = "canary-7f3a-secret"


class SecretiveOptions(MemoryOptions):
    secret_key = forms.CharField(max_length=100)


class SecretiveBroker(MemoryBroker):
    slug = "secretive"
    label = "Secretive"
    OptionsForm = SecretiveOptions
    secret_options = frozenset({"secret_key"})


def register(settings) -> None:
    settings.CLOUDSTORE_BROKERS = {"secretive": "tests.brokers.secretive.SecretiveBroker"}
