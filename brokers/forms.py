"""The admin's form for a broker: the row's own fields, and those of the driver's options form."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar

from django import forms

from brokers import limits, registry, services
from brokers.errors import BrokerError
from brokers.models import Broker

OPTION = "option_"
ADOPT = (
    "Connect a place that holds objects of a CloudStore broker that is not in this database, such as one that was "
    "removed by force. What it holds is then verified and used again."
)
KEPT = "Stored, and not shown. Leave empty to keep it."


class BrokerForm(forms.ModelForm):
    """`kind` is set on a subclass that `form_for` makes; options stand under `option_<name>`."""

    kind: registry.Kind
    # Who asks for an audit row sets it on the class that `form_for` made.
    record: ClassVar[services.Record | None] = None
    saved: Broker

    class Meta:
        model = Broker
        fields = ["name", "domain", "weight", "enabled", *limits.FIELDS]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in limits.FIELDS:
            self.fields[name].required = False

    def options(self) -> dict[str, Any]:
        """The options as they were typed, for the services, which run the driver's own form over them."""
        return {
            name: self.cleaned_data[OPTION + name]
            for name in self.kind.form.base_fields
            if self.cleaned_data.get(OPTION + name) is not None
        }

    def _post_clean(self) -> None:
        """Save by the services as the last step of validation, so that what the provider answers is shown
        beside what was typed. `saved` is the row."""
        super()._post_clean()  # type: ignore[misc]
        if self.errors:
            return
        try:
            self.saved = self._save_by_services()
        except services.InvalidOptions as error:
            for name, texts in error.errors.items():
                shown = next((n for n in (OPTION + name, name) if n in self.fields), None)
                self.add_error(shown, texts)
        except BrokerError as error:
            self.add_error(None, f"{error.code.replace('_', ' ').capitalize()}: {error}")

    def _save_by_services(self) -> Broker:
        data, record = self.cleaned_data, type(self).record
        own = {"name": data["name"], "domain": data["domain"], "weight": data["weight"]}
        own["allowed"] = {name: None if data[name] == "" else data[name] for name in limits.FIELDS}
        if self.instance.pk is None:
            return services.add_broker(
                driver=self.kind.slug, options=self.options(), adopt=data["adopt"], record=record, **own
            )
        saved = services.update_broker(self.instance.pk, options=self.options(), record=record, **own)
        if data["enabled"] != saved.enabled:
            saved = services.set_enabled(saved.pk, data["enabled"], record=record)
        return saved


def form_for(slug: str, broker: Broker | None = None) -> type[BrokerForm]:
    """The form for a driver, filled with an existing broker's options. Secrets are write-only. Raises
    Misconfigured for a driver that cannot be used."""
    kind = registry.get(slug)
    fields: dict[str, Any] = {"kind": kind}
    if broker is None:
        fields["adopt"] = forms.BooleanField(required=False, label="Take over", help_text=ADOPT)
    for name, original in kind.form.base_fields.items():
        field = deepcopy(original)
        if name in kind.secret_options:
            field.widget = forms.PasswordInput(render_value=False, attrs={"autocomplete": "new-password"})
            if broker is not None:
                field.required = False
                field.help_text = KEPT
        elif broker is not None and name in broker.options:
            field.initial = broker.options[name]
        elif broker is not None and not isinstance(field, forms.BooleanField):
            field.initial = ""
        field.label = field.label or name.replace("_", " ").capitalize()
        fields[OPTION + name] = field
    return type("BrokerForm", (BrokerForm,), fields)
