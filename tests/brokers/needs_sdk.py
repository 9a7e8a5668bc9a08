"""A driver whose SDK is not installed."""

import an_sdk_not_installed  # noqa: F401


class Broker: ...
