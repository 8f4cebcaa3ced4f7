"""What a receiver counts: bounded whoever comes, exact in its totals, the same after a restart."""

import json
from dataclasses import asdict

import pytest

from dicomfs.activity import (
    MOST_EVENTS,
    MOST_VISITS,
    OTHER_PATIENT,
    OTHERS,
    Activity,
    Events,
    Snapshot,
)
from dicomfs.association import _ANSWERS
from dicomfs.model import Stored

NOON = 1_800_000_000.0
"""The beginning of a slot of five minutes: 300 times 6 000 000."""
HOUR, DAY = 3600, 86_400


def only(snapshot: Snapshot) -> Events:
    (found,) = snapshot.failed
    return found


@pytest.mark.parametrize(
    ("ago", "in_hour", "in_day"),
    [
        (0, True, True),
        (1, True, True),
        (3600, True, True),
        (3899, True, True),  # still in the slot that the hour begins in
        (3901, False, True),
        (86_400, False, True),
        (86_701, False, False),
        (-301, False, False),  # a clock was set back meanwhile
    ],
)
def test_what_the_last_hour_and_day_are(ago: int, *, in_hour: bool, in_day: bool) -> None:
    activity, now = Activity(), NOON + 299
    activity.failed("rejected", "CT1 at 10.0.0.1", "why", now - ago)
    seen = only(activity.snapshot())
    assert (seen.within(HOUR, now), seen.within(DAY, now)) == (in_hour, in_day)


def test_events_add_up_over_the_slots() -> None:
    activity = Activity()
    for minute in range(0, 600, 10):
        activity.failed("rejected", "CT1 at 10.0.0.1", f"minute {minute}", NOON + 60 * minute)
    seen = only(activity.snapshot())
    assert (seen.latest, seen.text) == (NOON + 60 * 590, "minute 590")
    # 60 of them; within the hour before minute 590: from minute 530 on.
    assert (seen.within(HOUR, NOON + 60 * 590), seen.within(DAY, NOON + 60 * 590)) == (7, 60)


def test_days_of_events_take_no_more_room_than_one() -> None:
    activity = Activity()
    for slot in range(3 * 288):
        activity.failed("rejected", "CT1 at 10.0.0.1", "", NOON + 300 * slot)
    seen = only(activity.snapshot())
    assert len(seen.counts) == 289  # a day, and the slot that has begun
    assert activity.snapshot().failed_totals == {"rejected": 3 * 288}


def test_a_clock_that_was_wrong_once_is_got_over() -> None:
    activity = Activity()
    activity.failed("rejected", "CT1 at 10.0.0.1", "", NOON)
    activity.failed("rejected", "CT1 at 10.0.0.1", "", NOON + 3e9)
    activity.failed("rejected", "CT1 at 10.0.0.1", "", NOON + 300)
    seen = only(activity.snapshot())
    assert len(seen.counts) <= 289
    assert seen.within(DAY, NOON + 300) >= 1


def test_peers_with_endless_names_take_bounded_memory_and_are_all_counted() -> None:
    activity = Activity()
    for number in range(5000):
        activity.failed("rejected", f"X{number} at 10.0.0.1", "x" * 1000, NOON)
    snapshot = activity.snapshot()
    assert len(snapshot.failed) == MOST_EVENTS + 1
    assert sum(one.within(HOUR, NOON) for one in snapshot.failed) == 5000
    assert snapshot.failed_totals == {"rejected": 5000}
    (others,) = [one for one in snapshot.failed if one.who == OTHERS]
    assert others.within(HOUR, NOON) == 5000 - MOST_EVENTS
    assert max(len(one.text) for one in snapshot.failed) <= 200
    # A day later they have made room.
    activity.failed("rejected", "CT1 at 10.0.0.2", "", NOON + DAY + 301)
    assert "CT1 at 10.0.0.2" in {one.who for one in activity.snapshot().failed}
    assert len(activity.snapshot().failed) <= MOST_EVENTS


def test_open_associations_are_counted_while_they_are_open() -> None:
    activity = Activity()
    first, second = activity.opened("CT1", "10.0.0.1", NOON), activity.opened("MR1", "10.0.0.2", NOON + 1)
    first.bytes += 1000
    activity.stored(first, Stored.NEW)
    activity.stored(first, Stored.ALREADY_THERE)
    activity.refused(second, "C000 why", "because", NOON + 2, is_trouble=False)
    snapshot = activity.snapshot()
    assert [(one.ae_title, one.objects, one.refused, one.bytes) for one in snapshot.visits] == [
        ("CT1", 2, 0, 1000),
        ("MR1", 0, 1, 0),
    ]
    assert snapshot.stored == {"new": 1, "already_there": 1, "repaired": 0, "other_version": 0}
    activity.closed(first)
    after = activity.snapshot()
    assert [one.ae_title for one in after.visits] == ["MR1"]
    assert (after.open, after.opened, after.bytes, after.stored) == (1, 2, 1000, snapshot.stored)
    assert [(one.what, one.who) for one in after.refused] == [("C000 why", "MR1 at 10.0.0.2")]


def test_many_open_associations_are_counted_and_some_described() -> None:
    activity = Activity()
    visits = [activity.opened(f"CT{number}", "10.0.0.1", NOON) for number in range(1000)]
    snapshot = activity.snapshot()
    assert (snapshot.open, len(snapshot.visits)) == (1000, MOST_VISITS)
    for visit in visits:
        activity.closed(visit)
    assert activity.snapshot().open == 0


def test_trouble_lasts_until_something_is_stored() -> None:
    activity = Activity()
    visit = activity.opened("CT1", "10.0.0.1", NOON)
    activity.refused(visit, "A700 full", "why", NOON, is_trouble=True)
    activity.refused(visit, "A700 full", "why", NOON + 9, is_trouble=True)
    trouble = activity.snapshot().trouble
    assert trouble is not None
    assert (trouble.what, trouble.since, trouble.latest) == ("A700 full", NOON, NOON + 9)
    activity.refused(visit, "C000 unreadable", "why", NOON + 10, is_trouble=False)
    assert activity.snapshot().trouble == trouble
    activity.stored(visit, Stored.NEW)
    assert activity.snapshot().trouble is None


def test_a_snapshot_survives_json_and_is_inherited() -> None:
    activity = Activity()
    visit = activity.opened("CT1", "10.0.0.1", NOON)
    visit.bytes = 77
    activity.stored(visit, Stored.OTHER_VERSION)
    activity.refused(visit, "A700 full", "why", NOON, is_trouble=True)
    activity.failed("rejected", "X at 10.0.0.9", "why", NOON - 5000)
    before = activity.snapshot()
    told = Snapshot.of(json.loads(json.dumps(asdict(before))))
    assert told == before
    heir = Activity()
    heir.failed("rejected", "X at 10.0.0.9", "again", NOON + 1)
    heir.inherit(told)
    after = heir.snapshot()
    assert (after.open, after.opened, after.bytes, after.trouble) == (0, 1, 77, None)
    assert after.stored == before.stored
    assert after.refused == before.refused
    assert (after.refused_totals, after.failed_totals) == ({"A700 full": 1}, {"rejected": 2})
    both = only(after)
    assert (both.text, both.within(HOUR, NOON + 1), both.within(DAY, NOON + 1)) == ("again", 1, 2)


def test_a_snapshot_of_another_version_is_no_snapshot() -> None:
    facts = asdict(Activity().snapshot())
    with pytest.raises((TypeError, KeyError)):
        Snapshot.of({**facts, "more": 1})
    with pytest.raises((TypeError, KeyError)):
        Snapshot.of({name: value for name, value in facts.items() if name != "failed"})


def test_the_answer_that_is_an_alarm_is_told_apart() -> None:
    assert [answer.status for _, answer in _ANSWERS if answer.comment == OTHER_PATIENT] == [0x0111]
