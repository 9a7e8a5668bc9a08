"""What the bench makes of its runs: medians, ratios, targets, tables and the dated summary."""

from __future__ import annotations

import pytest

from bench import results
from bench.__main__ import parse
from bench.results import BEGIN, END, Recorder, medians, percentile, replace_between, targets

pytestmark = pytest.mark.only_on("sqlite")


def recorded(**rates: float) -> Recorder:
    """A recorder with one upload run of each peer; `_` in a name stands for `-`."""
    recorder = Recorder()
    for peer, rate in rates.items():
        recorder.add("upload", peer.replace("_", "-"), "mb_per_s", rate)
    return recorder


def report_of(recorder: Recorder) -> dict[str, object]:
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "command": "make bench",
        "quick": False,
        "database": "SQLite",
        "machine": {
            "cores": 2, "processor": "P", "memory_bytes": 2**34, "kernel": "6.1", "file_system": "ext4",
            "disk_mb_per_s": 500.0, "python": "3.11.7", "commit": "abc",
        },
        "plan": {"size": 2**30, "files": 1000},
        "titles": {"cloudstore": "CloudStore"},
        "medians": medians(recorder.runs),
        "left_out": recorder.out,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "percent", "wanted"),
    [
        ([5.0], 50, 5.0),
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([4.0, 1.0, 2.0, 3.0], 50, 2.0),
        (list(range(1, 101)), 95, 95),
    ],
)
def test_a_percentile_is_the_nearest_rank(values: list[float], percent: float, wanted: float) -> None:
    assert percentile(values, percent) == wanted


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_rates_are_medians_and_peaks_are_the_highest() -> None:
    recorder = Recorder()
    for rate, peak in ((10, 100), (90, 300), (20, 200)):
        recorder.add("upload", "a", "mb_per_s", rate)
        recorder.add("upload", "a", "peak_rss_mib", peak)
    assert medians(recorder.runs) == {"upload": {"a": {"mb_per_s": 20, "peak_rss_mib": 300}}}


def test_like_is_compared_with_like() -> None:
    rates = recorded(cloudstore=60, cloudstore_nosync=500, plain=1000, plain_sync=120, rclone_crypt=100)
    measured = {target.text: (target.measured, target.met) for target in targets(medians(rates.runs))}
    assert measured["upload / rclone crypt over union (no fsync)"] == (5.0, True)
    assert measured["upload / two plain copies (no fsync)"] == (0.5, True)
    assert measured["upload / two plain copies (fdatasync)"] == (0.5, False)
    assert measured["download / nginx sendfile"] == (None, None)


def test_small_files_are_judged_by_the_worst_number_of_clients() -> None:
    recorder = Recorder()
    for clients, ours, theirs in ((1, 30, 10), (8, 5, 10), (32, 20, 10)):
        recorder.add("small", "cloudstore-nosync", f"create_{clients}_per_s", ours)
        recorder.add("small", "rclone-crypt", f"create_{clients}_per_s", theirs)
    (create,) = (t for t in targets(medians(recorder.runs)) if "create" in t.text)
    assert (create.measured, create.met, create.note) == (0.5, False, "1: 3.00, 8: 0.50, 32: 2.00")


def test_the_table_of_small_files_tells_how_many_there_were_when_a_step_was_cut_short() -> None:
    recorder = Recorder()
    recorder.add("small", "cloudstore", "create_8_per_s", 123.4)
    recorder.add("small", "cloudstore", "cpu_ms_8", 5.678)
    recorder.add("small", "cloudstore", "files_8", 640)
    text = results.tables(report_of(recorder))
    assert "create x8" in text and "123" in text and "5.7" in text
    assert "CloudStore: 640 with 8" in text


def test_strict_counts_what_was_missed_and_what_was_not_measured() -> None:
    said: list[str] = []
    found = medians(recorded(cloudstore_nosync=500, plain=100, rclone_crypt=100).runs)
    assert results.strict_failures(found, said.append) == len(targets(found)) - 2 == len(said)
    assert "not met: upload / two plain copies (no fsync)" not in said


def test_a_peer_that_was_left_out_is_named_with_its_reason() -> None:
    recorder = recorded(cloudstore=1)
    recorder.leave_out("start", "nginx", "no nginx that runs here")
    assert recorder.is_out("upload", "nginx") and not recorder.is_out("upload", "cloudstore")
    assert "Left out of start: nginx: no nginx that runs here" in results.tables(report_of(recorder))


def test_the_summary_is_dated_and_takes_the_place_between_the_markers() -> None:
    summary = results.summary(report_of(recorded(cloudstore=1234.4)))
    text = replace_between(f"# Head\n\n{BEGIN}\nold\n{END}\n\n## Tail\n", summary)
    assert "Measured on 2026-01-02" in text and "| CloudStore | 1,234 |  |  |" in text and "old" not in text
    assert text.startswith("# Head\n\n") and text.endswith(f"{END}\n\n## Tail\n")
    assert replace_between(text, summary) == text


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_document_without_its_markers_is_left_alone(text: str) -> None:
    with pytest.raises(ValueError, match="markers"):
        replace_between(text, "new")


def test_the_performance_page_has_the_markers() -> None:
    from bench.__main__ import DOCUMENT

    assert BEGIN in replace_between(DOCUMENT.read_text(), "new")


@pytest.mark.parametrize("arguments", [["uplaod"], ["--only", "cloudstore,apache"]])
def test_unknown_cases_and_peers_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert "not one of" in capsys.readouterr().err
