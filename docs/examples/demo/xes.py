"""Read an event log in the IEEE XES format (1849-2016) as a stream of events.

A *trace* of the log is a case, and a case is a workflow; an *event* of the trace is an
action upon it. The reader takes four attributes of an event, by their standard names:

=========================  ========  =============================
``concept:name``           required  what was done, the activity
``time:timestamp``         required  when; UTC where no zone is given
``lifecycle:transition``   optional  e.g. ``start``, ``complete``
``org:resource``           optional  who did it
=========================  ========  =============================

and of a trace its ``concept:name``, which becomes the workflow key. Two traces of one
name are one case. A trace without events adds nothing.

The file is read in pieces, plain or gzip, and never held as a whole: expat calls back
at each tag, and one trace is kept at a time. A DOCTYPE is refused where it begins, so
no entity is ever declared, and so none is ever expanded.
"""

from __future__ import annotations

import gzip
import zlib
from datetime import UTC, datetime
from sys import intern
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast
from xml.parsers import expat

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GZIP_MAGIC = b"\x1f\x8b"
CHUNK = 1 << 16
LONGEST_KEY = 255

NAME = "concept:name"
TIMESTAMP = "time:timestamp"
TRANSITION = "lifecycle:transition"
RESOURCE = "org:resource"
WANTED = frozenset({NAME, TIMESTAMP, TRANSITION, RESOURCE})


class XesError(ValueError):
    """Say in one line why a file cannot be read as an event log."""


class Event(NamedTuple):
    """One event of a log; *position* counts the events of the whole log from 0."""

    workflow_key: str
    position: int
    timestamp: datetime
    activity: str
    transition: str | None
    resource: str | None


def read_events(path: Path) -> Iterator[Event]:
    """Yield the events of the log at *path* in the order of the file.

    Raises :class:`XesError`, with the path and the reason in one line, for whatever
    keeps the file from being read to its end. Since a fault may come late in the file,
    events may have been yielded before it.
    """
    try:
        with path.open("rb") as file:
            yield from _parse(_decompressed(file, path))
    except XesError as error:
        raise XesError(f"{path}: {error}") from None
    except EOFError:
        raise XesError(f"{path}: truncated gzip file") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise XesError(f"{path}: damaged gzip file: {error}") from None
    except OSError as error:
        raise XesError(f"{path}: {error.strerror or error}") from None
    except expat.ExpatError as error:
        raise XesError(f"{path}: broken XML: {error}") from None
    except (ValueError, LookupError) as error:
        # What an encoding declaration can make of expat and the codecs.
        raise XesError(f"{path}: not readable as XML: {error}") from None


def _decompressed(file: BinaryIO, path: Path) -> BinaryIO:
    """Return *file*, decompressed where its content, not its name, says so."""
    magic = file.read(len(GZIP_MAGIC))
    file.seek(0)
    if magic == GZIP_MAGIC:
        return cast("BinaryIO", gzip.GzipFile(fileobj=file))
    if path.suffix == ".gz":
        raise XesError("named .gz, but not a gzip file")
    return file


def _parse(stream: BinaryIO) -> Iterator[Event]:
    log = _Log()
    while chunk := stream.read(CHUNK):
        log.parser.Parse(chunk, False)
        yield from log.drain()
    log.parser.Parse(b"", True)
    yield from log.drain()
    if log.events == 0:
        raise XesError("an XES log without events")


class _Log:
    """Hear expat's calls, keep the trace that is open and the events that are ready."""

    def __init__(self) -> None:
        self.parser = expat.ParserCreate(namespace_separator=" ")
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.StartDoctypeDeclHandler = self.refuse_doctype
        self.path: list[str] = []
        self.traces = 0
        self.events = 0
        self.trace: dict[str, str] = {}
        self.trace_events: list[dict[str, str]] = []
        self.ready: list[Event] = []

    def drain(self) -> list[Event]:
        ready, self.ready = self.ready, []
        return ready

    def refuse_doctype(self, *_: object) -> None:
        raise XesError("holds a DOCTYPE, which no event log needs; refused")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self.path.append(name.rpartition(" ")[2])
        match self.path:
            case ["log", "trace", "event", _]:
                _keep(self.trace_events[-1], attributes)
            case ["log", "trace", "event"]:
                self.trace_events.append({})
            case ["log", "trace", _]:
                _keep(self.trace, attributes)
            case ["log", "trace"]:
                self.traces += 1
                self.trace, self.trace_events = {}, []
            case ["log", "event"]:
                raise XesError(
                    f"an event outside any trace, after {self.traces} traces"
                )
            case [root] if root != "log":
                raise XesError(f"not an XES log: its root element is <{root}>")

    def end(self, _name: str) -> None:
        if self.path == ["log", "trace"]:
            self.close_trace()
        self.path.pop()

    def close_trace(self) -> None:
        key = self.trace.get(NAME)
        if key is None:
            raise XesError(f"trace {self.traces} has no {NAME}")
        if not 1 <= len(key) <= LONGEST_KEY:
            raise XesError(
                f"trace {self.traces}: {NAME} has {len(key)} characters, but a "
                f"workflow key has 1 to {LONGEST_KEY}"
            )
        for number, found in enumerate(self.trace_events, start=1):
            self.ready.append(self.event(key, number, found))
            self.events += 1

    def event(self, key: str, number: int, found: dict[str, str]) -> Event:
        place = f"trace {self.traces} ({key!r}), event {number}"
        for name in (NAME, TIMESTAMP):
            if name not in found:
                raise XesError(f"{place} has no {name}")
        try:
            timestamp = datetime.fromisoformat(found[TIMESTAMP])
        except ValueError:
            raise XesError(
                f"{place}: {TIMESTAMP} is not a time: {found[TIMESTAMP]!r}"
            ) from None
        if timestamp.tzinfo is None:
            timestamp = timestamp.replace(tzinfo=UTC)
        transition, resource = found.get(TRANSITION), found.get(RESOURCE)
        return Event(
            workflow_key=key,
            position=self.events,
            timestamp=timestamp,
            activity=intern(found[NAME]),
            transition=None if transition is None else intern(transition),
            resource=None if resource is None else intern(resource),
        )


def _keep(into: dict[str, str], attributes: dict[str, str]) -> None:
    key, value = attributes.get("key"), attributes.get("value")
    if key in WANTED and value is not None:
        into[key] = value
