"""The reader of event logs: what it takes, and how it says what it does not take."""

from __future__ import annotations

import gzip
import tracemalloc
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
from xes import Event, XesError, read_events

if TYPE_CHECKING:
    from pathlib import Path

CET = timezone(timedelta(hours=1))

EVENT = """
<event>
  <string key="concept:name" value="accept"/>
  <date key="time:timestamp" value="2012-03-01T10:00:00.250+01:00"/>
  <string key="lifecycle:transition" value="complete"/>
  <string key="org:resource" value="Ann"/>
  <string key="impact" value="Medium"/>
</event>"""


def trace(name: str | None, *events: str) -> str:
    """Return a trace as XML, without a name if that is None."""
    named = "" if name is None else f'<string key="concept:name" value="{name}"/>'
    return f"<trace>{named}{''.join(events)}</trace>"


def log(*traces: str) -> str:
    """Return a whole log as XML."""
    return f'<?xml version="1.0"?><log xes.version="1.0">{"".join(traces)}</log>'


def write(folder: Path, text: str, name: str = "log.xes") -> Path:
    """Write a file, compressed if its *name* says so."""
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if ".gz" in name else text.encode())
    return path


def test_event_carries_the_four_attributes_and_its_case(tmp_path: Path) -> None:
    """An event has the case as its key, what, when, by whom, and which transition."""
    (event,) = read_events(write(tmp_path, log(trace("case-1", EVENT))))
    assert event == Event(
        workflow_key="case-1",
        position=0,
        timestamp=datetime(2012, 3, 1, 10, 0, 0, 250_000, tzinfo=CET),
        activity="accept",
        transition="complete",
        resource="Ann",
    )
    assert event.timestamp.utcoffset() == timedelta(hours=1)


def test_gzip_is_recognised_by_content(tmp_path: Path) -> None:
    """A gzip file reads like the plain one, also if its name does not say so."""
    text = log(trace("a", EVENT, EVENT), trace("b", EVENT))
    plain = list(read_events(write(tmp_path, text)))
    zipped = write(tmp_path, text, "log.xes.gz")
    unnamed = zipped.rename(tmp_path / "zipped.xes")
    assert list(read_events(unnamed)) == plain
    assert len(plain) == 3


@pytest.mark.parametrize(
    "root",
    [
        '<log xmlns="http://www.xes-standard.org/">{}</log>',
        '<x:log xmlns:x="http://www.xes-standard.org/">{}</x:log>',
    ],
    ids=["default", "prefixed"],
)
def test_namespaces_are_optional(tmp_path: Path, root: str) -> None:
    """A log in the standard's namespace reads like one without."""
    body = trace("a", EVENT)
    if "x:log" in root:
        body = body.replace("</", "<_/").replace("<", "<x:").replace("<x:_/", "</x:")
    namespaced = write(tmp_path, root.format(body))
    bare = write(tmp_path, log(trace("a", EVENT)), "bare.xes")
    assert list(read_events(namespaced)) == list(read_events(bare))


def test_positions_run_through_the_log(tmp_path: Path) -> None:
    """Positions count the events of the whole file; traces of one name are one case."""
    text = log(trace("a", EVENT, EVENT), trace("b", EVENT), trace("a", EVENT))
    events = list(read_events(write(tmp_path, text)))
    assert [event.position for event in events] == [0, 1, 2, 3]
    assert [event.workflow_key for event in events] == ["a", "a", "b", "a"]


def test_only_direct_attributes_count(tmp_path: Path) -> None:
    """Attributes of attributes, globals and extensions name neither case nor event."""
    other = '<string key="concept:name" value="wrong"/>'
    text = log(
        f'<global scope="trace">{other}</global>',
        f'<string key="meta" value="m">{other}</string>',
        trace(
            "a",
            f'<list key="more"><values>{other}</values></list>',
            EVENT.replace('value="Medium"/>', f'value="Medium">{other}</string>'),
        ),
    )
    (event,) = read_events(write(tmp_path, text))
    assert (event.workflow_key, event.activity) == ("a", "accept")


def test_case_may_be_named_after_its_events(tmp_path: Path) -> None:
    """The order of a trace's children is free."""
    text = log(
        f'<trace>{EVENT}<string key="concept:name" value="late"/></trace>',
    )
    (event,) = read_events(write(tmp_path, text))
    assert event.workflow_key == "late"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2012-03-01T10:00:00", datetime(2012, 3, 1, 10, tzinfo=UTC)),
        ("2012-03-01T10:00:00Z", datetime(2012, 3, 1, 10, tzinfo=UTC)),
        ("2012-03-01T10:00:00.5Z", datetime(2012, 3, 1, 10, 0, 0, 500_000, tzinfo=UTC)),
    ],
)
def test_timestamp_without_zone_is_utc(
    tmp_path: Path, written: str, meant: datetime
) -> None:
    """XES leaves the zone open; nothing else in the file would say it."""
    event = EVENT.replace("2012-03-01T10:00:00.250+01:00", written)
    (read,) = read_events(write(tmp_path, log(trace("a", event))))
    assert read.timestamp == meant


def test_resource_and_transition_are_optional(tmp_path: Path) -> None:
    """Many logs know neither."""
    event = EVENT.replace("org:resource", "x").replace("lifecycle:transition", "y")
    (read,) = read_events(write(tmp_path, log(trace("a", event))))
    assert (read.resource, read.transition) == (None, None)


LAUGHS = """<?xml version="1.0"?>
<!DOCTYPE log [<!ENTITY ha "ha"><!ENTITY haha "&ha;&ha;&ha;&ha;">]>
<log><trace><string key="concept:name" value="&haha;"/></trace></log>"""


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "broken XML: no element found"),
        ("concept:name;time\na;1\n", "broken XML: not well-formed (invalid token)"),
        ("<html><body/></html>", "not an XES log: its root element is <html>"),
        (log(trace("a", EVENT))[:-20], "broken XML"),
        (log(), "an XES log without events"),
        (log(trace("a")), "an XES log without events"),
        (log(trace("a", EVENT), trace(None, EVENT)), "trace 2 has no concept:name"),
        (log(trace("", EVENT)), "trace 1: concept:name has 0 characters"),
        (log(trace("k" * 256, EVENT)), "trace 1: concept:name has 256 characters"),
        (log(trace("a", EVENT), EVENT), "an event outside any trace, after 1 traces"),
        (
            log(trace("a", EVENT, EVENT.replace("concept:name", "name"))),
            "trace 1 ('a'), event 2 has no concept:name",
        ),
        (
            log(trace("a", EVENT.replace("time:timestamp", "when"))),
            "trace 1 ('a'), event 1 has no time:timestamp",
        ),
        (
            log(trace("a", EVENT.replace("2012-03-01T", "1 March "))),
            "time:timestamp is not a time: '1 March 10:00:00.250+01:00'",
        ),
        (LAUGHS, "holds a DOCTYPE"),
        ('<?xml version="1.0" encoding="nonsense"?><log/>', "unknown encoding"),
        ('<?xml version="1.0" encoding="shift_jis"?><log/>', "multi-byte encodings"),
    ],
)
def test_bad_log_is_refused_in_one_line(
    tmp_path: Path, text: str, complaint: str
) -> None:
    """Whatever is wrong, the message names the file and the fault in one line."""
    path = write(tmp_path, text)
    with pytest.raises(XesError) as caught:
        list(read_events(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert complaint in message
    assert "\n" not in message


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    """What the system says about the path comes out as it is."""
    with pytest.raises(XesError, match=r"no\.xes: No such file or directory$"):
        list(read_events(tmp_path / "no.xes"))
    with pytest.raises(XesError, match=r": Is a directory$"):
        list(read_events(tmp_path))


def test_damaged_gzip_is_refused(tmp_path: Path) -> None:
    """Truncated, damaged and misnamed gzip files each get their own word."""
    whole = gzip.compress(log(trace("a", *[EVENT] * 200)).encode())
    path = tmp_path / "log.xes.gz"

    path.write_bytes(whole[:-30])
    with pytest.raises(XesError, match="truncated gzip file"):
        list(read_events(path))

    path.write_bytes(whole[:40] + b"\0\0\0\0" + whole[44:])
    with pytest.raises(XesError, match="damaged gzip file"):
        list(read_events(path))

    path.write_bytes(log(trace("a", EVENT)).encode())
    with pytest.raises(XesError, match=r"named \.gz, but not a gzip file"):
        list(read_events(path))


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    """A log of 20,000 events passes through a few hundred kilobytes."""
    traces = [trace(f"case-{number}", *[EVENT] * 10) for number in range(2_000)]
    path = write(tmp_path, log(*traces), "log.xes.gz")
    del traces
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_events(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 20_000
    assert peak < 1_000_000
