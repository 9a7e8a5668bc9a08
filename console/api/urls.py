"""The operator's addresses, below /api/v1/."""

from django.urls import path

from console.api import brokers, jobs, objects

_ONE = "brokers/<int:broker_id>"
urlpatterns = [
    path("brokers", brokers.BrokersView.as_view(), name="brokers"),
    path("brokers/", brokers.BrokersView.as_view(schema=None), name="brokers"),
    path("brokers/drivers", brokers.DriversView.as_view(), name="drivers"),
    path(_ONE, brokers.BrokerView.as_view(), name="broker"),
    path(f"{_ONE}/test", brokers.TestView.as_view(), name="broker-test"),
    path(f"{_ONE}/poll", brokers.PollView.as_view(), name="broker-poll"),
    path(f"{_ONE}/enable", brokers.EnableView.as_view(), name="broker-enable"),
    path(f"{_ONE}/disable", brokers.DisableView.as_view(), name="broker-disable"),
    path(f"{_ONE}/write-marker", brokers.MarkerView.as_view(), name="broker-write-marker"),
    path(f"{_ONE}/confirm-loss", brokers.ConfirmLossView.as_view(), name="broker-confirm-loss"),
    path(f"{_ONE}/history", brokers.HistoryView.as_view(), name="broker-history"),
    path(f"{_ONE}/drain", brokers.DrainView.as_view(), name="broker-drain"),
    path(f"{_ONE}/undo-drain", brokers.UndoDrainView.as_view(), name="broker-undo-drain"),
    path(f"{_ONE}/remove", brokers.RemoveView.as_view(), name="broker-remove"),
    path(f"{_ONE}/objects", objects.ObjectsView.as_view(), name="broker-objects"),
    path(f"{_ONE}/objects/delete-orphans", objects.OrphansView.as_view(), name="broker-delete-orphans"),
    path(f"{_ONE}/adopt", jobs.AdoptView.as_view(), name="broker-adopt"),
    path("imports", jobs.ImportsView.as_view(), name="imports"),
    path("jobs", jobs.JobsView.as_view(), name="jobs"),
    path("jobs/<int:job_id>", jobs.JobView.as_view(), name="job"),
    path("jobs/<int:job_id>/cancel", jobs.CancelView.as_view(), name="job-cancel"),
    path("jobs/<int:job_id>/resume", jobs.ResumeView.as_view(), name="job-resume"),
    path("jobs/<int:job_id>/files", jobs.FilesView.as_view(), name="job-files"),
    path("rebalance", brokers.RebalanceView.as_view(), name="rebalance"),
]
