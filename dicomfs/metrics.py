"""A store's status as metrics, in Prometheus' text exposition format. Pure.

Names bear their units, counters end in `_total` and go on over restarts of the receiver; those of a mount
begin anew with it. Label values are fixed texts of ours, and mount points: no AE title, no address, nothing
of a patient, so that a peer cannot make series at will. What is not known is left out. Called by `cli.py`,
for the textfile collector of the node exporter.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dicomfs import __version__
from dicomfs.activity import DAY_S
from dicomfs.figures import BUCKETS_S, CacheFigures
from dicomfs.mountfile import MountRecord
from dicomfs.status import ALARMS, Receiving, Space, Status


def exposition(status: Status) -> str:
    """The text, each metric with its help."""
    registry = CollectorRegistry()
    registry.register(_Once(status))
    return generate_latest(registry).decode()


class _Once(Collector):
    """A collector of what was gathered already."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Every metric family, for the library that asks for them."""
        status = self._status
        yield _labelled(
            GaugeMetricFamily("dicomfs_build_info", "Version of dicomfs.", labels=["version"]),
            {(__version__,): 1},
        )
        raised = {alarm.kind for alarm in status.alarms}
        yield _labelled(
            GaugeMetricFamily(
                "dicomfs_alarm", "1: a person has to see to it; `dicomfs status` says what.", labels=["kind"]
            ),
            {(kind,): int(kind in raised) for kind in ALARMS},
        )
        yield _gauge("dicomfs_index_up", "1: the index can be read.", int(not status.index_trouble))
        yield from _of_receiving(status.receiving)
        yield from _of_mounts(status.mounts)
        yield from _of_store(status)
        if status.space is not None:
            yield from _of_space(status.space)


def _of_receiving(receiving: Receiving) -> Iterator[Metric]:
    running = [one for one in receiving.receivers if one.is_running]
    yield _gauge("dicomfs_receivers", "Receivers that run.", len(running))
    if running:
        began = min(one.process.started for one in running)
        yield _gauge("dicomfs_receiver_start_time_seconds", "Start of the oldest one, Unix time.", began)
    now_open = sum(one.activity.open for one in running)
    yield _gauge("dicomfs_associations", "Associations that are open.", now_open)
    yield CounterMetricFamily(
        "dicomfs_associations_opened", "Associations that were accepted.", value=receiving.opened_total
    )
    yield _labelled(
        CounterMetricFamily(
            "dicomfs_associations_failed",
            "Associations that were rejected or did not end well.",
            labels=["reason"],
        ),
        {(reason,): number for reason, number in receiving.failed_total.items()},
    )
    yield _labelled(
        CounterMetricFamily("dicomfs_objects_received", "Objects answered with success.", labels=["outcome"]),
        {(outcome,): number for outcome, number in receiving.stored_total.items()},
    )
    yield _labelled(
        CounterMetricFamily(
            "dicomfs_objects_refused", "Objects that were not stored.", labels=["status", "reason"]
        ),
        {
            (what.partition(" ")[0], what.partition(" ")[2]): number
            for what, number in receiving.refused_total.items()
        },
    )
    yield CounterMetricFamily(
        "dicomfs_received_bytes", "Data sets received, refused ones too.", value=receiving.bytes_total
    )
    if receiving.latest is not None:
        yield _gauge(
            "dicomfs_last_receipt_timestamp_seconds", "Receipt of the newest original.", receiving.latest
        )


def _of_mounts(mounts: Sequence[MountRecord]) -> Iterator[Metric]:
    yield _gauge("dicomfs_mounts", "Mounts that run and tell of themselves.", len(mounts))
    yield _labelled(
        GaugeMetricFamily(
            "dicomfs_mount_start_time_seconds", "Start of a mount, Unix time.", labels=["mountpoint"]
        ),
        {(one.mountpoint,): one.started for one in mounts},
    )
    yield from _of_caches({one.mountpoint: tuple(_tiers(one)) for one in mounts})
    yield from _of_disk_caches(mounts)
    times = HistogramMetricFamily(
        "dicomfs_render_seconds",
        "From the question to the picture; ahead: nobody waited for it.",
        labels=["mountpoint", "priority"],
    )
    for one in mounts:
        for priority, taken in (("interactive", one.figures.rendered), ("ahead", one.figures.ahead)):
            passed = itertools.accumulate(taken.counts)
            bounds = (*(f"{bound:g}" for bound in BUCKETS_S), "+Inf")
            times.add_metric(
                (one.mountpoint, priority), list(zip(bounds, passed, strict=True)), taken.seconds
            )
    yield times
    yield _labelled(
        CounterMetricFamily(
            "dicomfs_render_failures", "Renders without a result.", labels=["mountpoint", "reason"]
        ),
        {
            (one.mountpoint, reason): number
            for one in mounts
            for reason, number in (
                ("time_limit", one.figures.timed_out),
                ("other", one.figures.failed - one.figures.timed_out),
            )
        },
    )
    yield _labelled(
        CounterMetricFamily(
            "dicomfs_render_crashes", "Render processes that died in a job.", labels=["mountpoint"]
        ),
        {(one.mountpoint,): one.figures.crashed for one in mounts},
    )
    for name in sorted({name for one in mounts for name in one.figures.loop}):
        yield _labelled(
            GaugeMetricFamily(
                f"dicomfs_event_loop_{name}", "Of a mount's event loop.", labels=["mountpoint"]
            ),
            {(one.mountpoint,): one.figures.loop[name] for one in mounts if name in one.figures.loop},
        )


def _tiers(one: MountRecord) -> Iterator[tuple[str, CacheFigures]]:
    yield "memory", one.figures.memory
    if one.figures.disk is not None:
        yield "disk", one.figures.disk


def _of_caches(caches: Mapping[str, Sequence[tuple[str, CacheFigures]]]) -> Iterator[Metric]:
    labels = ["mountpoint", "tier"]
    for field, text in (
        ("hits", "Pictures that were asked for and were there."),
        ("misses", "Pictures that were asked for and were not there."),
        ("evictions", "Pictures that had to go for others."),
    ):
        yield _labelled(
            CounterMetricFamily(f"dicomfs_cache_{field}", text, labels=labels), _each(caches, field)
        )
    for field, name, text in (
        ("bytes", "bytes", "What is kept."),
        ("limit_bytes", "limit_bytes", "What may be kept."),
        ("items", "pictures", "Pictures that are kept."),
    ):
        yield _labelled(GaugeMetricFamily(f"dicomfs_cache_{name}", text, labels=labels), _each(caches, field))


def _each(
    caches: Mapping[str, Sequence[tuple[str, CacheFigures]]], field: str
) -> dict[tuple[str, ...], float]:
    return {
        (mountpoint, tier): getattr(figures, field)
        for mountpoint, tiers in caches.items()
        for tier, figures in tiers
    }


def _of_disk_caches(mounts: Sequence[MountRecord]) -> Iterator[Metric]:
    disks = {one.mountpoint: one.figures.disk for one in mounts if one.figures.disk is not None}
    for field, text in (
        ("written", "Pictures written to the disk cache."),
        ("dropped", "Pictures not written: its disk is too slow, or in trouble."),
        ("damaged", "Files of the disk cache that were not whole, and were removed."),
    ):
        yield _labelled(
            CounterMetricFamily(f"dicomfs_disk_cache_{field}", text, labels=["mountpoint"]),
            {(mountpoint,): getattr(disk, field) for mountpoint, disk in disks.items()},
        )
    yield _labelled(
        GaugeMetricFamily("dicomfs_disk_cache_up", "1: the disk cache is in use.", labels=["mountpoint"]),
        {(mountpoint,): int(not disk.trouble) for mountpoint, disk in disks.items()},
    )


def _of_store(status: Status) -> Iterator[Metric]:
    counts, conflicts, unreviewed = status.counts, status.conflicts, status.unreviewed
    if counts is not None:
        for name in ("patients", "exams", "series", "instances", "originals"):
            yield _gauge(f"dicomfs_{name}", f"{name.capitalize()} in the index.", getattr(counts, name))
        superseded = status.superseded or 0
        yield _gauge("dicomfs_superseded_originals", "Originals that are kept and not shown.", superseded)
    if conflicts is not None and unreviewed is not None:
        text = "Originals that bear another patient's identity than earlier ones of their UIDs"
        yield _gauge("dicomfs_identity_conflicts", f"{text}.", conflicts.number)
        yield _gauge("dicomfs_identity_conflicts_unreviewed", f"{text}, not yet reviewed.", unreviewed.number)
    yield _gauge("dicomfs_quarantined_objects", "Refused data sets kept aside.", status.quarantined.number)
    if status.commitments is not None:
        asked = status.commitments
        yield _gauge("dicomfs_commitments_open", "Storage commitments not yet reported.", asked.open)
        yield _gauge("dicomfs_commitments_given_up", "Results never delivered, of 30 days.", asked.given_up)
    if status.not_displayable is not None:
        number = len(status.not_displayable)
        yield _gauge("dicomfs_not_displayable_frames", "Frames that cannot be displayed (to 1000).", number)


def _of_space(space: Space) -> Iterator[Metric]:
    yield _gauge("dicomfs_disk_free_bytes", "Space that may still be written.", space.free)
    yield _gauge("dicomfs_disk_size_bytes", "Size of the disk of the store.", space.size)
    yield _gauge("dicomfs_min_free_bytes", "Below that nothing is taken in.", space.min_free)
    if space.rate is not None:
        yield _gauge(
            "dicomfs_archive_growth_bytes_per_second", "Over the last days, at most seven.", space.rate
        )
    if space.days_left is not None:
        left = space.days_left * DAY_S
        yield _gauge("dicomfs_until_min_free_seconds", "Until min_free is reached at that rate.", left)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _labelled(
    family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[tuple[str, ...], float]
) -> Metric:
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
