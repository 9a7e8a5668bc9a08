from __future__ import annotations

import pytest
from django.test import Client


@pytest.mark.django_db
@pytest.mark.urls("tests.accounts.urls")
def test_the_name_is_text_wherever_it_stands(settings: object) -> None:
    settings.CLOUDSTORE_NAME = "Müller & Söhne <script>"  # type: ignore[attr-defined]
    page = Client().get("/").content.decode()
    assert "Müller &amp; Söhne &lt;script&gt;" in page
    assert "<script" not in page and "CloudStore" not in page
