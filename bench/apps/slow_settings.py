"""The product's settings, and the kind of broker that the case `slow` measures with."""

from cloudstore.settings import *  # noqa: F403

CLOUDSTORE_BROKERS = {"slow": "bench.apps.slow_broker.SlowLocalBroker"}
