"""REST: imports of files, adoptions of known objects, and the jobs that do them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar

from django.http import Http404
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.models import User
from console import imports, jobs
from console.api.base import OperatorEndpoint, broker_or_404, given, keyset
from console.api.serializers import (
    CountSerializer,
    ImportedPageSerializer,
    ImportedQuery,
    ImportedSerializer,
    JobSerializer,
    JobsSerializer,
    NewImport,
)
from console.models import Job
from vfs.api.base import page_query
from vfs.api.problems import Refused
from vfs.api.serializers import PageQuery


class JobEndpoint(OperatorEndpoint):
    rights: ClassVar[dict[str, str]] = {"GET": "console.view_job", "POST": "console.change_job"}

    def job(self, job_id: int) -> Job:
        found = Job.objects.filter(pk=job_id).first()
        if found is None:
            raise Http404
        return found


def _shown(job: Job) -> dict[str, Any]:
    return asdict(jobs.progress(job))


class ImportsView(JobEndpoint):
    rights: ClassVar[dict[str, str]] = {"POST": "console.add_job"}

    @extend_schema(request=NewImport, responses={202: JobSerializer, 200: CountSerializer})
    def post(self, request: Request) -> Response:
        """Bring files of others, which lie at a broker, into a user's drive. The answer is the job that does it; 200
        with `dry_run`, which counts the objects."""
        asked = given(NewImport, request)
        owner = User.objects.filter(username=asked["user"]).first()
        if owner is None:
            raise Refused(400, "no_such_user", f"There is no user {asked['user']!r}.")
        broker = broker_or_404(asked["broker"])
        if asked["dry_run"]:
            count, size = imports.preview(broker.pk, asked["prefix"])
            return Response({"objects_there": count, "bytes_there": size})
        job = imports.start(
            broker.pk,
            owner,
            self.who,
            prefix=asked["prefix"],
            folder=asked["folder"],
            conflict=asked["conflict"],
        )
        return Response(_shown(job), status=202)


class AdoptView(JobEndpoint):
    rights: ClassVar[dict[str, str]] = {"POST": "console.add_job"}

    @extend_schema(request=None, responses={202: JobSerializer})
    def post(self, request: Request, broker_id: int) -> Response:
        """Look through the broker for objects of ours that no row knows: copies are verified and used again instead of
        being uploaded, whole files that nobody knows come back in lost+found. The answer is the job that does it."""
        return Response(_shown(jobs.begin_adoption(broker_or_404(broker_id).pk, self.who)), status=202)


class JobsView(JobEndpoint):
    @extend_schema(operation_id="jobs_list", parameters=[PageQuery], responses=JobsSerializer)
    def get(self, request: Request) -> Response:
        """The jobs, latest first, in pages."""
        rows = Job.objects.select_related("owner", "created_by")
        found, cursor = keyset(rows, "-id", *page_query(request), parse=int)
        return Response({"jobs": [_shown(job) for job in found], "next": cursor})


class JobView(JobEndpoint):
    @extend_schema(responses=JobSerializer)
    def get(self, request: Request, job_id: int) -> Response:
        """How far it is."""
        return Response(_shown(self.job(job_id)))


class CancelView(JobEndpoint):
    @extend_schema(request=None, responses=JobSerializer)
    def post(self, request: Request, job_id: int) -> Response:
        """End it where it is; what it has done stays. Idempotent."""
        return Response(_shown(jobs.cancel(self.job(job_id).pk, self.who)))


class ResumeView(JobEndpoint):
    @extend_schema(request=None, responses=JobSerializer)
    def post(self, request: Request, job_id: int) -> Response:
        """Go on with one that was stopped. 409 when it has ended."""
        return Response(_shown(jobs.resume(self.job(job_id).pk, self.who)))


class FilesView(JobEndpoint):
    @extend_schema(parameters=[ImportedQuery], responses=ImportedPageSerializer)
    def get(self, request: Request, job_id: int) -> Response:
        """What became of each object of an import, in pages; `state=refused` is the report of what could not be."""
        query = ImportedQuery(data=request.query_params)
        query.is_valid(raise_exception=True)
        asked = query.validated_data
        rows = self.job(job_id).files.all()
        if "state" in asked:
            rows = rows.filter(state=asked["state"])
        found, cursor = keyset(rows, "id", asked.get("cursor"), asked["limit"], parse=int)
        return Response({"files": ImportedSerializer(found, many=True).data, "next": cursor})
