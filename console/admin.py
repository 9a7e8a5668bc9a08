"""The brokers' page of the console: what moves bytes, and what is audited, of which brokers alone know nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import path, reverse
from django.utils.html import format_html

from accounts.models import User
from brokers import trial
from brokers.admin import BrokerAdmin
from brokers.errors import BrokerError
from brokers.models import Broker
from brokers.services import Record
from console import brokers, imports, jobs, operations, pages
from console.jobs import JobRefused
from console.models import ImportedFile, Job
from console.operations import Who
from console.pages import who
from replication import drain
from replication.admin import ReadOnly
from replication.drain import Progress
from replication.removal import RemovalRefused
from vfs.errors import VfsError

admin.site.unregister(Broker)


@admin.register(Broker)
class OperatedBrokerAdmin(BrokerAdmin):
    list_display = [
        *BrokerAdmin.list_display[:4], "objects", *BrokerAdmin.list_display[4:], "drains",
    ]  # fmt: skip
    actions = [
        *BrokerAdmin.actions, "test", "enable", "disable", "drain", "undo_drain", "remove", "rebalance",
        "stop_rebalance", "adopt", "confirm_loss",
    ]  # fmt: skip

    def recorder(self, request: HttpRequest) -> Record:
        return brokers.recorder(who(request))

    @admin.action(description="Test: write, read and delete a small object", permissions=["change"])
    def test(self, request: HttpRequest, chosen: QuerySet[Broker]) -> None:
        for broker in chosen:
            outcome = brokers.test(broker.pk, who(request))
            level = messages.SUCCESS if outcome.ok else messages.ERROR
            self.message_user(request, trial.words_of(outcome), level)

    @admin.action(description="Enable", permissions=["change"])
    def enable(self, request: HttpRequest, chosen: QuerySet[Broker]) -> None:
        for broker in chosen:
            enabled = brokers.set_enabled(broker.pk, True, who(request))
            level = messages.SUCCESS if enabled.readable else messages.WARNING
            self.message_user(request, f"{enabled.name} is enabled: {self.state(enabled)}", level)

    @admin.action(description="Disable: neither read nor written", permissions=["change"])
    def disable(self, request: HttpRequest, chosen: QuerySet[Broker]) -> None:
        for broker in chosen:
            brokers.set_enabled(broker.pk, False, who(request))
            self.message_user(request, f"{broker.name} is disabled")

    def get_urls(self) -> list[Any]:
        def page(name: str, render: Callable[..., HttpResponse]) -> Any:
            def view(request: HttpRequest, broker_id: int) -> HttpResponse:
                return render(request, self.admin_site, broker_id)

            return path(
                f"<int:broker_id>/{name}/", self.admin_site.admin_view(view), name=f"brokers_broker_{name}"
            )

        own = [page("objects", pages.browse_broker), page("remove", pages.remove_broker)]
        return [*own, *super().get_urls()]

    @admin.display(description="look")
    def objects(self, broker: Broker) -> str:
        return format_html(
            '<a href="{}">objects</a>, <a href="{}">removal</a>',
            reverse("admin:brokers_broker_objects", args=[broker.pk]),
            reverse("admin:brokers_broker_remove", args=[broker.pk]),
        )

    @admin.display(description="drain")
    def drains(self, broker: Broker) -> str:
        return drain.words_of(drain.progress(broker.pk)) if broker.draining else ""

    @admin.action(description="Drain: move everything to the other brokers", permissions=["change"])
    def drain(self, request: HttpRequest, chosen: QuerySet[Broker]) -> None:
        self._each(request, chosen, operations.begin_drain)

    @admin.action(description="Drain: undo", permissions=["change"])
    def undo_drain(self, request: HttpRequest, chosen: QuerySet[Broker]) -> None:
        self._each(request, chosen, operations.undo_drain)

    def _each(
        self, request: HttpRequest, chosen: QuerySet[Broker], act: Callable[[int, Who], Progress]
    ) -> None:
        for broker in chosen:
            progress = act(broker.pk, who(request))
            level = messages.WARNING if progress.blocked and progress.draining else messages.SUCCESS
            self.message_user(request, drain.words_of(progress), level)

    @admin.action(description="Remove, when empty", permissions=["change"])
    def remove(self, request: HttpRequest, chosen: QuerySet[Broker]) -> None:
        for broker in chosen:
            try:
                operations.remove(broker.pk, who(request))
            except (RemovalRefused, BrokerError) as error:
                self.message_user(request, f"{broker.name}: {error}", messages.ERROR)
            else:
                self.message_user(request, f"{broker.name} was removed")

    @admin.action(description="Confirm: what is missing is lost", permissions=["change"])
    def confirm_loss(self, request: HttpRequest, chosen: QuerySet[Broker]) -> None:
        for broker in chosen:
            if not broker.incident:
                self.message_user(request, f"{broker.name} has no incident", messages.WARNING)
                continue
            row = operations.confirm_loss(broker.pk, who(request))
            self.message_user(request, f"{row.name}: what is missing counts as lost; {self.state(row)}")

    @admin.action(description="Look through for objects that are known no more", permissions=["change"])
    def adopt(self, request: HttpRequest, chosen: QuerySet[Broker]) -> None:
        for broker in chosen:
            try:
                job = jobs.begin_adoption(broker.pk, who(request))
            except JobRefused as error:
                self.message_user(request, f"{broker.name}: {error}", messages.ERROR)
            else:
                self.message_user(request, f"job {job.pk} looks through {broker.name}")

    def save_model(self, request: HttpRequest, obj: Broker, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if not change and form.cleaned_data["adopt"]:
            job = jobs.begin_adoption(obj.pk, who(request))
            self.message_user(request, f"job {job.pk} looks through what the place holds")

    @admin.action(description="Rebalance all brokers", permissions=["change"])
    def rebalance(self, request: HttpRequest, chosen: QuerySet[Broker]) -> None:
        outlook = operations.begin_rebalance(who(request))
        text = (
            f"{outlook.moves} copies ({outlook.bytes} bytes) will move" if outlook.moves else "nothing moves"
        )
        self.message_user(request, f"{text}. {outlook.blocked}".strip())

    @admin.action(description="Rebalance: stop", permissions=["change"])
    def stop_rebalance(self, request: HttpRequest, chosen: QuerySet[Broker]) -> None:
        operations.stop_rebalance(who(request))
        self.message_user(request, "the rebalance was stopped")


class ImportForm(forms.ModelForm):
    """Orders an import as the last step of validation, so that what is wrong is shown beside what was typed."""

    who: Who
    saved: Job
    # Not a list to choose from: there may be very many.
    owner = forms.CharField(label="User", max_length=150, help_text="Into whose drive, by name.")

    class Meta:
        model = Job
        fields = ["broker", "prefix", "owner", "folder", "conflict"]
        widgets = {"folder": forms.TextInput(attrs={"class": "vTextField"})}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["broker"].required = True
        self.fields["folder"].initial = "/imported"
        self.fields["prefix"].strip = False  # type: ignore[attr-defined]

    def clean_owner(self) -> User:
        found = User.objects.filter(username=self.cleaned_data["owner"]).first()
        if found is None:
            raise forms.ValidationError("There is no user of this name.")
        return found

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc]
        if self.errors:
            return
        data = self.cleaned_data
        try:
            self.saved = imports.start(
                data["broker"].pk,
                data["owner"],
                self.who,
                prefix=data["prefix"],
                folder=data["folder"],
                conflict=data["conflict"],
            )
        except (JobRefused, VfsError) as error:
            self.add_error("folder" if isinstance(error, VfsError) else None, str(error))


@admin.register(Job)
class JobAdmin(ReadOnly):
    """Adding one orders an import."""

    list_display = [
        "id",
        "kind",
        "state",
        "broker_name",
        "owner",
        "folder",
        "far",
        "created_by",
        "created_at",
    ]
    list_filter = ["kind", "state"]
    list_select_related = ["owner", "created_by"]
    actions = ["cancel", "resume"]
    exclude = ["holder", "lease_until"]

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        return super().add_view(request, form_url, {**(extra_context or {}), "title": "Import files"})

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("console.add_job")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # For the actions; the rows themselves are shown read-only.
        return request.user.has_perm("console.change_job")

    def get_readonly_fields(self, request: HttpRequest, obj: Job | None = None) -> Any:
        return [field.name for field in Job._meta.fields if field.name not in self.exclude] if obj else []

    def get_form(
        self, request: HttpRequest, obj: Job | None = None, change: bool = False, **kwargs: Any
    ) -> Any:
        if obj is not None:
            return super().get_form(request, obj, change, **kwargs)
        return type("ImportForm", (ImportForm,), {"who": who(request)})

    def get_fields(self, request: HttpRequest, obj: Job | None = None) -> Any:
        return super().get_fields(request, obj) if obj else ImportForm.Meta.fields

    def save_model(self, request: HttpRequest, obj: Job, form: Any, change: bool) -> None:
        """The service has saved by the form already; take over what the row is."""
        if not change:
            obj.__dict__.update(form.saved.__dict__)

    @admin.display(description="progress")
    def far(self, job: Job) -> str:
        now = jobs.progress(job)
        there = "?" if now.objects_there is None else now.objects_there
        words = f"{now.objects} of {there}, {now.refused} refused, {now.failed} failed"
        if job.kind == Job.Kind.ADOPTION:
            words = ""
        return f"{words} {now.reason}".strip()

    @admin.action(description="Cancel", permissions=["change"])
    def cancel(self, request: HttpRequest, chosen: QuerySet[Job]) -> None:
        for job in chosen:
            self.message_user(request, jobs.words_of(jobs.progress(jobs.cancel(job.pk, who(request)))))

    @admin.action(description="Go on", permissions=["change"])
    def resume(self, request: HttpRequest, chosen: QuerySet[Job]) -> None:
        for job in chosen:
            try:
                again = jobs.resume(job.pk, who(request))
            except JobRefused as error:
                self.message_user(request, str(error), messages.ERROR)
            else:
                self.message_user(request, jobs.words_of(jobs.progress(again)))


@admin.register(ImportedFile)
class ImportedFileAdmin(ReadOnly):
    list_display = ["name", "job", "state", "detail", "path", "size", "at"]
    list_filter = ["state", "job"]
    list_select_related = ["job"]
    search_fields = ["name", "path"]
