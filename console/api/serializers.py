"""What the operator's endpoints take and give."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from brokers.models import Health, Traffic
from brokers.state import State
from console import browse
from console.models import ImportedFile, Job
from vfs.api.serializers import Text
from vfs.paging import PAGE


class LimitsSerializer(serializers.Serializer[Any]):
    """What the operator allows a broker: bytes, calls at once, bytes and requests per second, bytes per calendar month
    (UTC). null is no limit."""

    capacity_limit = serializers.IntegerField(required=False, allow_null=True, min_value=0)
    reserve = serializers.IntegerField(required=False, min_value=0)
    max_concurrency = serializers.IntegerField(required=False, allow_null=True, min_value=1)
    max_rate = serializers.IntegerField(required=False, allow_null=True, min_value=1)
    max_requests = serializers.FloatField(required=False, allow_null=True, min_value=0.001)
    monthly_traffic = serializers.IntegerField(required=False, allow_null=True, min_value=0)
    monthly_counts = serializers.ChoiceField(required=False, choices=Traffic.choices)
    monthly_hard = serializers.BooleanField(required=False)


class BrokerSerializer(serializers.Serializer[Any]):
    """A broker. Secrets are named nowhere; sizes in bytes, null where the provider does not say."""

    id = serializers.IntegerField()
    name = serializers.CharField()
    driver = serializers.CharField()
    domain = serializers.CharField()
    options = serializers.DictField()
    weight = serializers.FloatField()
    enabled = serializers.BooleanField()
    draining = serializers.BooleanField()
    state = serializers.ChoiceField(choices=[str(value) for value in State.values])
    health = serializers.ChoiceField(choices=[str(value) for value in Health.values])
    reason = serializers.CharField(allow_blank=True)
    detail = serializers.CharField(allow_blank=True)
    since = serializers.DateTimeField()
    degraded_since = serializers.DateTimeField(allow_null=True)
    incident = serializers.CharField(allow_null=True)
    checked_at = serializers.DateTimeField(allow_null=True)
    latency_ms = serializers.FloatField(allow_null=True)
    total = serializers.IntegerField(allow_null=True)
    used = serializers.IntegerField(allow_null=True)
    available = serializers.IntegerField(allow_null=True)
    held = serializers.IntegerField(allow_null=True)
    room = serializers.IntegerField(allow_null=True)
    limits = LimitsSerializer()
    traffic_used_up = serializers.BooleanField()
    marker = serializers.UUIDField()


class BrokersSerializer(serializers.Serializer[Any]):
    """A page of brokers by name."""

    brokers = BrokerSerializer(many=True)
    next = serializers.CharField(allow_null=True)


class OptionSerializer(serializers.Serializer[Any]):
    """One option of a driver, as a client may show it. `type` is boolean, integer, number, choice, text or long text;
    a secret is never given back."""

    name = serializers.CharField()
    label = serializers.CharField()  # type: ignore[assignment]
    help = serializers.CharField(allow_blank=True)
    type = serializers.ChoiceField(choices=["boolean", "integer", "number", "choice", "text", "long_text"])
    required = serializers.BooleanField()  # type: ignore[assignment]
    secret = serializers.BooleanField()
    initial = serializers.JSONField(allow_null=True)
    choices = serializers.ListField(child=serializers.ListField(child=serializers.CharField()))


class DriverSerializer(serializers.Serializer[Any]):
    """A kind of broker. One that cannot be used has no options, and `unusable` says why."""

    slug = serializers.CharField()
    label = serializers.CharField()  # type: ignore[assignment]
    unusable = serializers.CharField(allow_blank=True)
    options = OptionSerializer(many=True)
    deviations = serializers.DictField(child=serializers.CharField())


class DriversSerializer(serializers.Serializer[Any]):
    drivers = DriverSerializer(many=True)


class OptionsField(serializers.DictField):
    """The driver's options, secrets among them, checked by the driver's own form. Never given back as they came."""


class NewBroker(serializers.Serializer[Any]):
    """`adopt` takes over a place with objects of a broker that is not in this database; `dry_run` only looks."""

    name = Text(max_length=100)
    driver = Text(max_length=50)
    domain = Text(max_length=100)
    weight = serializers.FloatField(required=False, default=1.0)
    options = OptionsField(required=False, default=dict)
    limits = LimitsSerializer(required=False, source="allowed")
    adopt = serializers.BooleanField(required=False, default=False)
    dry_run = serializers.BooleanField(required=False, default=False)


class BrokerChange(serializers.Serializer[Any]):
    """What is left out stays, as does a secret given as ""."""

    name = Text(required=False, max_length=100)
    domain = Text(required=False, max_length=100)
    weight = serializers.FloatField(required=False)
    options = OptionsField(required=False)
    limits = LimitsSerializer(required=False, source="allowed")
    dry_run = serializers.BooleanField(required=False, default=False)


class HistoryQuery(serializers.Serializer[Any]):
    """`since` defaults to a day before `until`, and that to now; one point stands for `step` seconds."""

    since = serializers.DateTimeField(required=False)
    until = serializers.DateTimeField(required=False)
    step = serializers.IntegerField(required=False, default=3600, min_value=300, max_value=86_400 * 31)


class SpeedSerializer(serializers.Serializer[Any]):
    """How long the calls of one kind took, in seconds."""

    calls = serializers.IntegerField()
    p50 = serializers.FloatField()
    p95 = serializers.FloatField()
    p99 = serializers.FloatField()


class PointSerializer(serializers.Serializer[Any]):
    """What was counted in `span` seconds from `start`. `errors` counts by code, `failures` those that speak against the
    broker; `used` and `available` are bytes, as last told."""

    start = serializers.DateTimeField()
    span = serializers.IntegerField()
    calls = serializers.IntegerField()
    failures = serializers.IntegerField()
    errors = serializers.DictField(child=serializers.IntegerField())  # type: ignore[assignment]
    bytes_up = serializers.IntegerField()
    bytes_down = serializers.IntegerField()
    used = serializers.IntegerField(allow_null=True)
    available = serializers.IntegerField(allow_null=True)
    speeds = serializers.DictField(child=SpeedSerializer())


class HistorySerializer(serializers.Serializer[Any]):
    """Oldest first; steps without calls are left out."""

    points = PointSerializer(many=True)


class StepSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    ok = serializers.BooleanField()
    seconds = serializers.FloatField()
    detail = serializers.CharField(allow_blank=True)


class TrialSerializer(serializers.Serializer[Any]):
    """A trial with one small object, up to the first step that failed."""

    broker = serializers.CharField()
    ok = serializers.BooleanField()
    bytes = serializers.IntegerField()
    steps = StepSerializer(many=True)


class ProgressSerializer(serializers.Serializer[Any]):
    """A drain. `rate` in bytes per second; null while nothing has moved."""

    broker = serializers.CharField()
    draining = serializers.BooleanField()
    since = serializers.DateTimeField(allow_null=True)
    objects = serializers.IntegerField()
    bytes = serializers.IntegerField()
    deleting = serializers.IntegerField()
    uploading = serializers.IntegerField()
    moved_bytes = serializers.IntegerField()
    rate = serializers.FloatField(allow_null=True)
    seconds_left = serializers.IntegerField(allow_null=True)
    waiting = serializers.DictField(child=serializers.IntegerField())
    blocked = serializers.CharField(allow_blank=True)


class RemovalInput(serializers.Serializer[Any]):
    """`force_name`, the broker's name typed once more, removes it whatever it holds. `leave_objects` touches nothing
    at the place. `dry_run` only says what stands against it."""

    force_name = Text(required=False, allow_blank=True, trim_whitespace=False, max_length=100)
    leave_objects = serializers.BooleanField(required=False, default=False)
    dry_run = serializers.BooleanField(required=False, default=False)


class RemovalSerializer(serializers.Serializer[Any]):
    """`files` and `lost` name the first files concerned."""

    broker = serializers.CharField()
    removed = serializers.BooleanField()
    reachable = serializers.BooleanField()
    needed = serializers.IntegerField()
    bytes = serializers.IntegerField()
    deleting = serializers.IntegerField()
    contents = serializers.IntegerField()
    contents_only_here = serializers.IntegerField()
    files = serializers.ListField(child=serializers.CharField())
    lost = serializers.ListField(child=serializers.CharField())
    left_there = serializers.IntegerField()
    refused = serializers.CharField(allow_blank=True)


class ShareSerializer(serializers.Serializer[Any]):
    broker = serializers.CharField()
    held = serializers.IntegerField()
    goal = serializers.IntegerField()


class OutlookSerializer(serializers.Serializer[Any]):
    """How load stands between the brokers, and what a rebalance would still move."""

    running = serializers.BooleanField()
    balanced = serializers.BooleanField()
    moves = serializers.IntegerField()
    bytes = serializers.IntegerField()
    pending = serializers.IntegerField()
    pending_bytes = serializers.IntegerField()
    seconds_left = serializers.IntegerField(allow_null=True)
    shares = ShareSerializer(many=True)
    blocked = serializers.CharField(allow_blank=True)


class ObjectsQuery(serializers.Serializer[Any]):
    prefix = serializers.CharField(required=False, default="", allow_blank=True, max_length=1000)
    kind = serializers.ChoiceField(required=False, default="", allow_blank=True, choices=list(browse.KINDS))
    cursor = serializers.CharField(required=False, max_length=10_000, help_text="`next` of the page before.")
    limit = serializers.IntegerField(required=False, min_value=1, max_value=browse.PAGE_MOST, default=PAGE)


class FileSerializer(serializers.Serializer[Any]):
    owner = serializers.CharField()
    path = serializers.CharField()
    version = serializers.IntegerField()
    trashed = serializers.BooleanField()


class ObjectSerializer(serializers.Serializer[Any]):
    """An object on a broker. `size` is -1 where the listing does not say. `files` are the first with a version of its
    content. `first_seen` and `deletable_from` speak of an orphan that a scan has noted."""

    path = serializers.CharField()
    size = serializers.IntegerField()
    modified = serializers.DateTimeField(allow_null=True)
    kind = serializers.ChoiceField(choices=list(browse.KINDS))
    state = serializers.CharField(allow_blank=True)
    content = serializers.UUIDField(allow_null=True)
    segment = serializers.IntegerField(allow_null=True)
    files = FileSerializer(many=True)
    first_seen = serializers.DateTimeField(allow_null=True)
    deletable_from = serializers.DateTimeField(allow_null=True)


class ObjectsSerializer(serializers.Serializer[Any]):
    """A page in the provider's order. It may hold few or no objects although `next` leads on: then it has looked at as
    many as it may."""

    objects = ObjectSerializer(many=True)
    next = serializers.CharField(allow_null=True)


class OrphansInput(serializers.Serializer[Any]):
    objects = serializers.ListField(
        child=Text(trim_whitespace=False, max_length=500), min_length=1, max_length=200
    )
    dry_run = serializers.BooleanField(required=False, default=False)


class OrphanOutcomeSerializer(serializers.Serializer[Any]):
    """`refused` is a code: not_ours, referenced, not_seen_twice, too_young, deletion_locked, last_copy, gone,
    broker_not_readable, or what the broker answered."""

    locator = serializers.CharField()
    deleted = serializers.BooleanField()
    size = serializers.IntegerField()
    refused = serializers.CharField(allow_blank=True)
    detail = serializers.CharField(allow_blank=True)


class OrphansSerializer(serializers.Serializer[Any]):
    objects = OrphanOutcomeSerializer(many=True)


class NewImport(serializers.Serializer[Any]):
    """`broker` is an id, `user` a name: the objects that begin with `prefix` become files below `folder`, named by what
    follows the last slash of the prefix. `dry_run` only counts."""

    broker = serializers.IntegerField()
    user = Text(max_length=150)
    prefix = Text(required=False, default="", allow_blank=True, trim_whitespace=False, max_length=1000)
    folder = Text(required=False, default="/", trim_whitespace=False, max_length=5000)
    conflict = serializers.ChoiceField(
        required=False, default=str(Job.Conflict.KEEP_BOTH), choices=[str(c) for c in Job.Conflict.values]
    )
    dry_run = serializers.BooleanField(required=False, default=False)


class CountSerializer(serializers.Serializer[Any]):
    objects_there = serializers.IntegerField()
    bytes_there = serializers.IntegerField()


class JobSerializer(serializers.Serializer[Any]):
    """Of `objects_there` and `bytes_there` (null until they are counted), `objects` and `bytes` were dealt with, and
    `files` objects brought in. `reason` says why it was stopped, or waits. `report` is that of an adoption."""

    id = serializers.IntegerField()
    kind = serializers.ChoiceField(choices=[str(k) for k in Job.Kind.values])
    state = serializers.ChoiceField(choices=[str(s) for s in Job.State.values])
    reason = serializers.CharField(allow_blank=True)
    broker = serializers.CharField()
    prefix = serializers.CharField(allow_blank=True)
    owner = serializers.CharField(allow_blank=True)
    folder = serializers.CharField(allow_blank=True)
    conflict = serializers.CharField()
    created_by = serializers.CharField(allow_blank=True)
    created_at = serializers.DateTimeField()
    finished_at = serializers.DateTimeField(allow_null=True)
    objects_there = serializers.IntegerField(allow_null=True)
    bytes_there = serializers.IntegerField(allow_null=True)
    objects = serializers.IntegerField()
    bytes = serializers.IntegerField()
    files = serializers.IntegerField()
    skipped = serializers.IntegerField()
    refused = serializers.IntegerField()
    failed = serializers.IntegerField()
    report = serializers.DictField()


class JobsSerializer(serializers.Serializer[Any]):
    """A page of jobs, latest first."""

    jobs = JobSerializer(many=True)
    next = serializers.CharField(allow_null=True)


class ImportedQuery(serializers.Serializer[Any]):
    state = serializers.ChoiceField(required=False, choices=[str(s) for s in ImportedFile.State.values])
    cursor = serializers.CharField(required=False, max_length=10_000, help_text="`next` of the page before.")
    limit = serializers.IntegerField(required=False, min_value=1, max_value=browse.PAGE_MOST, default=PAGE)


class ImportedSerializer(serializers.Serializer[Any]):
    """What became of one object. `path` and `node` are those of the file in the drive."""

    name = serializers.CharField()
    state = serializers.ChoiceField(choices=[str(s) for s in ImportedFile.State.values])
    detail = serializers.CharField(allow_blank=True)
    node = serializers.UUIDField(allow_null=True)
    path = serializers.CharField(allow_blank=True)
    size = serializers.IntegerField()
    attempts = serializers.IntegerField()
    at = serializers.DateTimeField()


class ImportedPageSerializer(serializers.Serializer[Any]):
    files = ImportedSerializer(many=True)
    next = serializers.CharField(allow_null=True)
