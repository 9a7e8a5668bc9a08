"""Fixtures of the tests of operators' work; those of names and brokers serve here too."""

from tests.vfs.conftest import _clean_brokers, put, two

__all__ = ["_clean_brokers", "put", "two"]
