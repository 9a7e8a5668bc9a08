"""The product's settings, with the kinds of brokers that know one address only sent to servers on this machine."""

import os

from brokers.drivers.mega_client import Account
from cloudstore.settings import *  # noqa: F403

Account.endpoint = os.environ["TEST_MEGA_ENDPOINT"]
