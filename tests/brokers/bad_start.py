"""A driver that quotes its options when it does not start."""

from tests.brokers.readme_broker import CustomBroker


class Bad(CustomBroker):
    def __init__(self, password):
        raise ValueError(f"wrong password {password}")
