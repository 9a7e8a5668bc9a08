"""The examples of docs/brokers.md, as printed."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from brokers import registry
from brokers.drivers.s3_options import PROVIDERS
from brokers.open import OpenBroker
from brokers.services import add_broker
from brokers.testing import conformance
from brokers.testing.conformance import Conformance

pytestmark = pytest.mark.only_on("sqlite")

PAGE = (Path(__file__).parents[2] / "docs/brokers.md").read_text()
FOLDER = Path(__file__).parents[2] / "docs/brokers"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def example(monkeypatch) -> type:
    module = types.ModuleType("mypackage.brokers")
    exec(EXAMPLES[0], module.__dict__)
    monkeypatch.setitem(sys.modules, "mypackage", types.ModuleType("mypackage"))
    monkeypatch.setitem(sys.modules, "mypackage.brokers", module)
    return module.FolderBroker


@pytest.mark.parametrize("name", conformance.names())
def test_the_example_keeps_the_contract(example, tmp_path, name):
    check = Conformance(lambda: OpenBroker(example(str(tmp_path)))).run_one(name)
    assert check.ok, check.detail


@pytest.mark.django_db
def test_the_example_registers_as_printed(example, settings, tmp_path):
    found: dict[str, dict[str, str]] = {}
    exec(EXAMPLES[1], found)
    settings.CLOUDSTORE_BROKERS = found["CLOUDSTORE_BROKERS"]
    assert registry.get("folder").secret_options == {"api_token"}
    broker = add_broker("Example", "folder", "here", {"folder": str(tmp_path), "api_token": "t"})
    assert broker.health == "online" and broker.options == {"folder": str(tmp_path)}


def test_the_example_test_runs_as_printed(example, tmp_path):
    space = {"FolderBroker": example}
    exec(EXAMPLES[2], space)
    space["test_folder_broker"]("one_byte", tmp_path)


def test_every_shipped_driver_and_option_is_described():
    for slug in registry.BUILT_IN:
        assert f"### {slug}" in PAGE
        if slug not in registry.HIDDEN:
            fields = registry.get(slug).form.base_fields
            assert not [name for name, field in fields.items() if not field.help_text]
            shown = [name for name, field in fields.items() if not field.widget.is_hidden]
            assert not [name for name in shown if f"`{name}`" not in PAGE]
            own = (FOLDER / f"{slug}.md").read_text()
            assert f"(brokers/{slug}.md)" in PAGE
            assert not [name for name in shown if f"`{name}`" not in own]
            assert "cost" in own.lower() and "limits" in own.lower()


def test_the_table_of_s3_providers_is_what_is_known_of_them():
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", (FOLDER / "s3.md").read_text(), re.MULTILINE)
    shown = {slug: row.split(" | ") for slug, row in rows if slug in {*PROVIDERS, "other"}}
    assert set(shown) == {*PROVIDERS, "other"}
    for slug, kind in PROVIDERS.items():
        address, style, checksums, classes, encryption = shown[slug]
        where = kind.endpoint.removeprefix("https://").format(region="REGION")
        assert address == (f"`{where}`" if where else "you give it")
        assert style == {"path": "path", "virtual": "virtual host"}[kind.style]
        assert checksums == ("yes" if kind.checksums else "no")
        assert re.findall(r"`([^`]+)`", classes) == list(kind.storage_classes or [])
        assert re.findall(r"`([^`]+)`", encryption) == list(kind.encryption or [])


def test_the_table_of_deviations_is_that_of_the_drivers():
    shown = PAGE.partition("<!-- deviations -->\n")[2].partition("\n<!-- end")[0]
    drivers = {slug: registry.get(slug).cls for slug in registry.BUILT_IN}
    assert shown == conformance.table(drivers)
    unknown = {name for cls in drivers.values() for name in conformance.declared(cls)} - {
        *conformance.names()
    }
    assert not unknown
