"""The options of the Google Cloud Storage driver."""

from __future__ import annotations

import json

import pytest

from brokers.services import InvalidOptions, check_options
from tests.servers.fake_gcs import service_key  # noqa: F401

pytestmark = pytest.mark.only_on("sqlite")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"bucket": ""}, "bucket"),
        ({"bucket": "a/b/../c"}, "bucket"),
        ({"credentials": "odd"}, "credentials"),
        ({"service_account_key": ""}, "service_account_key"),
        ({"service_account_key": "{not json"}, "service_account_key"),
        ({"service_account_key": '{"type": "authorized_user"}'}, "service_account_key"),
        ({"service_account_key": '{"type": "service_account"}'}, "service_account_key"),
        (
            {
                "service_account_key": json.dumps(
                    {
                        "type": "service_account",
                        "client_email": "a@b",
                        "private_key": "canary",
                        "private_key_id": "k",
                    }
                )
            },
            "service_account_key",
        ),
        ({"prefix": "a/../b"}, "prefix"),
        ({"storage_class": "FROZEN"}, "storage_class"),
        ({"credentials": "none"}, "endpoint_url"),
        ({"endpoint_url": "ftp://x"}, "endpoint_url"),
        ({"endpoint_url": "http://169.254.169.254"}, "endpoint_url"),
        ({"endpoint_url": "http://storage.example.com"}, "endpoint_url"),
        ({"endpoint_url": "https://storage.example.com", "credentials": "ambient"}, "endpoint_url"),
        ({"endpoint_url": "https://evilgoogleapis.com", "credentials": "ambient"}, "endpoint_url"),
    ],
)
def test_options_are_checked(service_key, change, field):  # noqa: F811
    good = {"bucket": "bbb", "service_account_key": service_key, "prefix": "/a/b/"}
    plain, _secrets = check_options("gcs", good)
    assert plain["credentials"] == "key" and plain["prefix"] == "a/b"
    assert check_options("gcs", {"bucket": "bbb", "credentials": "ambient"})
    with pytest.raises(InvalidOptions) as caught:
        check_options("gcs", {**good, **change})
    assert field in caught.value.errors
    assert "canary" not in str(caught.value)
