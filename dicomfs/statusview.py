"""A store's status for people, alarms first, and for machines as plain values. Pure; `cli.py` prints."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final

from dicomfs.activity import DAY_S, OpenAssociation
from dicomfs.census import KeptOriginal
from dicomfs.commitments import CommitmentCounts
from dicomfs.figures import BUCKETS_S, CacheFigures, DiskFigures, Times
from dicomfs.mountfile import MountRecord
from dicomfs.runfile import Record
from dicomfs.status import Receiving, Refusals, Space, Status, counted

MOST_LINES: Final = 20
"""Of one kind, for people; `--json` has the rest."""
_LABEL: Final = 13


def lines(status: Status) -> Iterator[str]:
    """What a person reads."""
    yield f"store {status.store}"
    for alarm in status.alarms:
        yield f"ALARM: {alarm.text}"
    yield ""
    yield from _section("receiver", _receivers(status.receiving, status.taken))
    yield from _section("last hour", _last_hour(status.receiving, status.taken))
    yield from _section("refused", _refusals("object", status.receiving.refused, status.taken))
    yield from _section("rejected", _refusals("association", status.receiving.failed, status.taken))
    for one in status.mounts:
        yield from _section("mount", _mount(one, status.taken))
    yield from _section("space", _space(status.space))
    yield from _section("stored", _stored(status))
    yield from _section("quarantine", _aside(status))
    yield from _section("commitments", _commitments(status.commitments))
    yield from _section("pictures", _pictures(status))
    yield from _section("not known", status.troubles)


def _section(label: str, words: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(words):
        yield f"{'' if number else label:{_LABEL}} {line}"


def _receivers(receiving: Receiving, now: float) -> Iterator[str]:
    if not receiving.receivers:
        yield "none has run"
    for one in receiving.receivers:
        process = one.process
        who = f"{process.ae_title}, port {process.port}"
        if not one.is_running:
            how = f"stopped {_when(one.stopped, now)}" if one.stopped else "ended without being stopped"
            yield f"not running: {who}, {how}, last heard of {_when(one.written, now)}"
            continue
        yield f"{who}, running since {_when(process.started, now)} (process {process.pid})"
        number = one.activity.open
        yield f"{counted(number, 'open association')}{':' * bool(number)}"
        shown = one.activity.visits[:MOST_LINES]
        yield from _table([_association(visit, now) for visit in shown])
        if number > len(shown):
            yield f"  and {number - len(shown)} more"


def _association(visit: OpenAssociation, now: float) -> tuple[str, ...]:
    return (
        f"{visit.ae_title} at {visit.address}",
        f"since {_when(visit.since, now)}",
        f"{visit.objects} stored",
        f"{visit.refused} refused",
        _bytes(visit.bytes),
    )


def _last_hour(receiving: Receiving, now: float) -> Iterator[str]:
    if receiving.last_hour is None:
        yield "not known"
        return
    objects = sum(one.objects for one in receiving.last_hour)
    size = sum(one.bytes for one in receiving.last_hour)
    newest = f"; the newest of all: {_when(receiving.latest, now)}" if receiving.latest else ""
    yield f"{counted(objects, 'new object')}, {_bytes(size)}{newest}"
    shown = receiving.last_hour[:MOST_LINES]
    yield from _table([(one.source_ae or "(import)", str(one.objects), _bytes(one.bytes)) for one in shown])
    if len(receiving.last_hour) > len(shown):
        yield f"  and of {len(receiving.last_hour) - len(shown)} more senders"


def _refusals(what: str, refusals: Sequence[Refusals], now: float) -> Iterator[str]:
    hour, day = sum(one.last_hour for one in refusals), sum(one.last_day for one in refusals)
    yield f"{counted(hour, what)} in the last hour, {day:,} in the last day{':' * bool(refusals)}"
    for one in refusals[:MOST_LINES]:
        yield f"  {one.last_hour} / {one.last_day}  {one.who}: {one.what}"
        yield f"    {_when(one.latest, now)}  {one.text}"
    if len(refusals) > MOST_LINES:
        yield f"  and {len(refusals) - MOST_LINES} more kinds"


def _mount(one: MountRecord, now: float) -> Iterator[str]:
    figures = one.figures
    yield f"{one.mountpoint}, running since {_when(one.started, now)} (process {one.pid})"
    yield f"in memory: {_cache(figures.memory)}"
    if figures.disk is not None:
        yield f"on disk: {_cache(figures.disk)}; {_disk(figures.disk)}"
    if figures.disk is not None and figures.disk.trouble:
        yield f"the disk cache is not in use: {figures.disk.trouble}"
    yield f"rendered for people: {_times(figures.rendered)}; ahead: {_times(figures.ahead)}"
    if figures.failed or figures.crashed:
        failed = counted(figures.failed, "render")
        yield f"{failed} failed, {figures.timed_out:,} out of time; {figures.crashed:,} crashed a process"
    if figures.loop:
        yield "event loop: " + ", ".join(f"{name} {value:g}" for name, value in figures.loop.items())


def _cache(figures: CacheFigures) -> str:
    asked = figures.hits + figures.misses
    found = f"{100 * figures.hits / asked:.1f} % found of {asked:,}" if asked else "nothing asked for yet"
    room = f"{_bytes(figures.bytes)} of {_bytes(figures.limit_bytes)}"
    return f"{found}; {counted(figures.items, 'picture')}, {room}; {figures.evictions:,} evicted"


def _disk(figures: DiskFigures) -> str:
    return f"{figures.written:,} written, {figures.dropped:,} not, {figures.damaged:,} damaged"


def _times(times: Times) -> str:
    """How many, median, and the time of nearly all."""
    if not times.count:
        return "0"
    half, most = _seconds(times.quantile(0.5)), _seconds(times.quantile(0.99))
    return f"{times.count:,} (half within {half}, 99 % within {most})"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "more than a minute"
    return f"{seconds:g} s" if seconds >= 1 else f"{1000 * seconds:g} ms"


def _space(space: Space | None) -> Iterator[str]:
    if space is None:
        yield "not known"
        return
    least = _bytes(space.min_free)
    yield f"{_bytes(space.free)} free of {_bytes(space.size)}; below {least} nothing is taken in"
    days = space.rate_days
    span = f"{days:.0f} days" if days >= 2 else f"{days * 24:.0f} hours"
    if space.days_left is not None and space.rate is not None:
        pace = f"{_bytes(space.rate * DAY_S)} a day"
        yield f"{space.days_left:,.0f} days left at the rate of the last {span} ({pace})"
    elif days * 24 < 1:
        yield "days left: too early to tell"
    else:
        yield f"days left: nothing came in within the last {span}"


def _stored(status: Status) -> Iterator[str]:
    counts, conflicts, unreviewed = status.counts, status.conflicts, status.unreviewed
    if counts is None:
        yield "not known"
        return
    yield ", ".join(f"{number:,} {name}" for name, number in asdict(counts).items())
    if status.superseded:
        yield f"{counted(status.superseded, 'original')} kept and not shown (--superseded)"
    if conflicts is not None and unreviewed is not None and conflicts.number:
        latest = _when(conflicts.latest_received, status.taken)
        yield (
            f"{counted(conflicts.number, 'original')} with another patient's identity (--conflicts), "
            f"the latest of {latest}; {unreviewed.number:,} not reviewed"
        )


def _aside(status: Status) -> Iterator[str]:
    yield f"{counted(status.quarantined.number, 'refused data set')} kept aside in {status.store}/quarantine"
    for when, why in status.quarantined.newest:
        yield f"  {_when(when, status.taken)}  {why}"
    if status.forgotten:
        yield f"{counted(status.forgotten, 'forgotten original')} kept in {status.store}/forgotten"


def _commitments(found: CommitmentCounts | None) -> Iterator[str]:
    if found is None or found == CommitmentCounts():
        return
    yield (
        f"{found.open:,} open; in the last hour {found.reported_last_hour:,} reported, "
        f"{found.failed_last_hour:,} of them with failures; {found.given_up:,} given up"
    )
    for peer in found.waiting[:MOST_LINES]:
        yield f"  {counted(peer.reports, 'result')} for {peer.ae_title}: {peer.trouble}"


def _pictures(status: Status) -> Iterator[str]:
    if status.not_displayable is None:
        return
    yield f"{counted(len(status.not_displayable), 'frame')} that cannot be displayed"
    for one in status.not_displayable[:MOST_LINES]:
        yield f"  original {one.original} frame {one.frame}: {one.reason}"


def kept_lines(kept: Sequence[KeptOriginal], most: int, now: float) -> Iterator[str]:
    """A list of originals for people, newest first; how to go on, if there may be more than `most`."""
    rows = [("ORIGINAL", "RECEIVED", "FROM", "SHOWN", "SOP INSTANCE UID")]
    for one in kept:
        shown = "itself" if one.shown == one.sequence else str(one.shown)
        conflict = "  other patient's identity" * one.conflict
        when, sender = _when(one.received, now), one.source_ae or "(import)"
        rows.append((str(one.sequence), when, sender, shown, one.sop_uid + conflict))
    yield from (line[2:] for line in _table(rows))
    if len(kept) == most:
        yield f"older ones: --before {kept[-1].sequence}"


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Rows with aligned columns, indented by two."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "".join(f"  {cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _when(seconds: float, now: float) -> str:
    """A time of this machine's zone; without its date if that is today."""
    there = time.localtime(seconds)
    is_today = there[:3] == time.localtime(now)[:3]
    return time.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M:%S", there)


def _bytes(number: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1e3:.1f} kB"


# For machines


def facts(status: Status) -> dict[str, Any]:
    """Everything, for JSON. Times are seconds since the epoch; what is not known is null."""
    receiving, space = status.receiving, status.space
    conflicts, unreviewed = status.conflicts, status.unreviewed
    counts = {} if status.counts is None else asdict(status.counts)
    return {
        "store": status.store,
        "taken": status.taken,
        "alarms": [asdict(alarm) for alarm in status.alarms],
        "receivers": [_receiver_facts(one) for one in receiving.receivers],
        "mounts": [_mount_facts(one) for one in status.mounts],
        "last_hour": None if receiving.last_hour is None else [asdict(one) for one in receiving.last_hour],
        "last_receipt": receiving.latest,
        "refused": [asdict(one) for one in receiving.refused],
        "associations_failed": [asdict(one) for one in receiving.failed],
        "totals": {
            "associations_opened": receiving.opened_total,
            "associations_failed": receiving.failed_total,
            "objects_received": receiving.stored_total,
            "objects_refused": receiving.refused_total,
            "received_bytes": receiving.bytes_total,
        },
        **counts,
        "superseded": status.superseded,
        "identity_conflicts": None if conflicts is None else conflicts.number,
        "identity_conflicts_unreviewed": None if unreviewed is None else unreviewed.number,
        "identity_conflicts_latest": None if conflicts is None else conflicts.latest_received or None,
        "free_bytes": None if space is None else space.free,
        "disk_bytes": None if space is None else space.size,
        "min_free_bytes": None if space is None else space.min_free,
        "bytes_per_day": None if space is None or space.rate is None else space.rate * DAY_S,
        "rate_days": None if space is None else space.rate_days,
        "days_left": None if space is None else space.days_left,
        "quarantined": status.quarantined.number,
        "forgotten": status.forgotten,
        "quarantine_newest": [{"time": when, "reason": why} for when, why in status.quarantined.newest],
        "commitments": None if status.commitments is None else asdict(status.commitments),
        "not_displayable": None
        if status.not_displayable is None
        else [asdict(one) for one in status.not_displayable],
        "not_known": [*([status.index_trouble] if status.index_trouble else []), *status.troubles],
    }


def _mount_facts(one: MountRecord) -> dict[str, Any]:
    facts = asdict(one)
    figures = facts.pop("figures")
    for name, times in (("rendered", one.figures.rendered), ("ahead", one.figures.ahead)):
        figures[name] = {
            "count": times.count,
            "seconds": times.seconds,
            "within": {f"{bound:g}": number for bound, number in zip(BUCKETS_S, times.counts, strict=False)},
            "median": times.quantile(0.5),
            "p99": times.quantile(0.99),
        }
    return {**facts, **figures}


def _receiver_facts(one: Record) -> dict[str, Any]:
    return {
        **asdict(one.process),
        "running": one.is_running,
        "last_heard": one.written,
        "stopped": one.stopped or None,
        "associations": one.activity.open,
        "open": [asdict(visit) for visit in one.activity.visits] if one.is_running else [],
        "trouble": None if one.activity.trouble is None else asdict(one.activity.trouble),
    }
