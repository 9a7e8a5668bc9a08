"""Fixtures of the tests of bytes; those of brokers serve here too."""

from tests.brokers.conftest import _clean_brokers

__all__ = ["_clean_brokers"]
