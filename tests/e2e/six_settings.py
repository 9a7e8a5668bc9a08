"""The product's settings, with the kinds of brokers that know one address only sent to servers on this machine."""

import os

from brokers.drivers import dropbox_client
from brokers.drivers.mega_client import Account
from cloudstore.settings import *  # noqa: F403
from tests.servers.fake_dropbox import session_to

Account.endpoint = os.environ["TEST_MEGA_ENDPOINT"]
dropbox_client.new_session = session_to(lambda: os.environ["TEST_DROPBOX_URL"])
