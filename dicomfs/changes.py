"""What has come to a mount, and what has gone from it: the names that watchers of its folders are told of.

Whatever brought that about: an original that came in, one that was forgotten, a day that has passed. Tells
nobody: that is the business of `publish.py` and `follow.py`, which call this.
"""

from collections.abc import Iterator
from dataclasses import replace

from dicomfs.entries import Appearance, Disappearance
from dicomfs.gate import Mark
from dicomfs.index import Index
from dicomfs.inode import Inode, Kind
from dicomfs.rows import DayRow, ExamRow, Removal
from dicomfs.selection import Selection
from dicomfs.tree import Tree


class Changes:
    """Names that appear in a tree and disappear from it."""

    def __init__(self, tree: Tree, index: Index) -> None:
        self._tree = tree
        self._index = index

    def appearances(self, sequence: int, instance: int) -> Iterator[Appearance]:
        """Names that the original of this receipt number brought with it, in every view, folders first."""
        tree = self._tree
        row = self._index.image(instance)
        exam = self._index.exam(row.exam) if row else None
        if row is None or exam is None:
            return
        for view in tree.views.values():
            selection = replace(tree.selection(view, Kind.EXAM, tree.gate), through=sequence)
            earlier = replace(selection, through=sequence - 1)
            if not self._index.exam_has_such(exam.id, exam.date, selection):
                continue
            holder, entry = tree.holder(exam, view.key), tree.exam_entry(exam, view)
            above = tree.entry(holder)
            if above is not None and not self._holds_such(exam, earlier):
                rank = (view.key, holder.kind)
                yield Appearance(tree.top(view.key), above.name, True, rank, Mark(sequence))
            if entry is not None and not self._index.exam_has_such(exam.id, exam.date, earlier):
                yield Appearance(holder, entry.name, True, (view.key, Kind.EXAM), Mark(sequence))
            if instance != sequence:
                continue
            rank, folder = (view.key, Kind.FILE), Inode(Kind.EXAM, exam.id, view.key)
            for frame in tree.frame_numbers(row, view):
                name = tree.file_name(row, frame, view)
                yield Appearance(folder, name, False, rank, Mark(sequence, frame))

    def disappearances(self, removal: Removal) -> Iterator[Disappearance]:
        """Names that went from every view with something that was forgotten."""
        tree = self._tree
        for view in tree.views.values():
            exam, top = tree.exam_entry(removal.exam, view), tree.top(view.key)
            if tree.by_date:
                above = tree.date_entry(DayRow(removal.exam.date, removal.exam.updated), view)
            else:
                above = tree.patient_entry(removal.patient, view)
            if above is None or exam is None:
                continue
            if removal.image is not None:
                for entry in tree.entries_of(removal.image, view):
                    mark = Mark(removal.image.id, entry.inode.frame)
                    yield Disappearance(top, (above, exam, entry), (view.key, Kind.FILE), mark)
                continue
            selection = tree.selection(view, Kind.EXAM, tree.gate)
            since = min((held.since for held in removal.held if held.is_of(selection)), default=None)
            if since is None:
                continue
            if not self._index.exam_has_such(removal.exam.id, removal.exam.date, selection):
                yield Disappearance(top, (above, exam), (view.key, Kind.EXAM), Mark(since))
            selection = tree.selection(view, tree.top_kind, tree.gate)
            if not self._holds_such(removal.exam, selection):
                yield Disappearance(top, (above,), (view.key, tree.top_kind), Mark(since))

    def left(self, before: str, now: str, most: int = 500) -> Iterator[Disappearance]:
        """Each folder that was shown while `first_day` was `before` and is not since `now`.

        What is inside another comes first. Exams, and the patients or dates of which nothing is left; a
        folder that still has something of a view is not among them.
        """
        tree = self._tree
        holders: dict[Inode, ExamRow] = {}
        place = (before, 0)
        while page := self._index.exams_between(place, now, most):
            for _, exam in page:
                for view in tree.views.values():
                    former = replace(tree.selection(view, Kind.EXAM, tree.gate), first_day=before)
                    holder = tree.holder(exam, view.key)
                    entry, above = tree.exam_entry(exam, view), tree.entry(holder)
                    if entry is None or above is None:
                        continue
                    if self._index.exam_has_such(exam.id, exam.date, former):
                        holders[holder] = exam
                        way, rank = (above, entry), (view.key, Kind.EXAM)
                        yield Disappearance(tree.top(view.key), way, rank, Mark(0))
            day, last = page[-1]
            place = (day, last.id)
        for holder, exam in holders.items():
            view = tree.views[holder.format]
            present = replace(tree.selection(view, holder.kind, tree.gate), first_day=now)
            entry = tree.entry(holder)
            if entry is not None and not self._holds_such(exam, present):
                yield Disappearance(tree.top(view.key), (entry,), (view.key, holder.kind), Mark(0))

    def _holds_such(self, exam: ExamRow, selection: Selection) -> bool:
        """Whether the folder that an exam is in has anything of a selection."""
        if self._tree.by_date:
            return self._index.day_has_such(exam.date, selection)
        return self._index.has_such(exam.patient, selection)
