"""The tree, without FUSE: names, inodes and cookies -> rows of the index, and so entries and pictures.

Everything here answers at once: it reads the index and what is known of renditions, and never renders, waits,
or touches an original. What a row looks like is in `aspect.py`. Called by `present.py` and `fuse.py`.
"""

import os
import re
from bisect import bisect_right
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Final

from dicomfs.aspect import FRAME_BITS, WHOLE, Aspect, Named, View
from dicomfs.entries import Entry, Listed, Picture
from dicomfs.filemeta import DATA_SET_OFFSET
from dicomfs.gate import Gate
from dicomfs.inode import STORED, Inode, Kind
from dicomfs.model import Source
from dicomfs.naming import FileName, fold, parse_file_name
from dicomfs.recipes import FORMATS
from dicomfs.rows import ImageRow
from dicomfs.selection import Selection

_AFTER_NUMBERS: Final = re.compile(r"(\([0-9A-Fa-f]+\))?(_[0-9]+)?\.[A-Za-z0-9]+$")
"""The parts of a file name behind the numbers: they have no case of their own."""
_OPEN: Final = Gate()


class Tree(Aspect):
    """One view of a store, to be walked."""

    # Names -> entries

    def lookup(self, parent: Inode, name: str, *, hidden: bool = False) -> Entry | None:
        """The entry of that exact name in a folder, or None; with `hidden` also one not published yet."""
        entry = self._find(parent, name, _OPEN if hidden else self.gate)
        return entry if entry is not None and entry.name == name else None

    def real_name(self, parent: Inode, name: str) -> str | None:
        """The spelling under which a folder has this name in any case, or None."""
        entry = self._find(parent, name, self.gate)
        return entry.name if entry is not None else None

    def _find(self, parent: Inode, name: str, gate: Gate) -> Entry | None:
        """The entry of that name in any case."""
        entry = self._candidate(parent, name, gate)
        # Keys may be wider than names: a label is found by its Patient ID alone.
        return entry if entry is not None and fold(entry.name) == fold(name) else None

    def _candidate(self, parent: Inode, name: str, gate: Gate) -> Entry | None:
        """The only entry that can have this name."""
        view = self.view_of(parent)
        if view is None:
            found = next((v for v in self.views.values() if fold(v.label) == fold(name)), None)
            return self.view_entry(found) if found and parent == self.root else None
        if parent.kind is Kind.TOP:
            return self._find_top(name, view, gate)
        if parent.kind is Kind.EXAM:
            return self._find_file(parent.id, name, view, gate)
        selection = self.selection(view, Kind.EXAM, gate)
        if parent.kind is Kind.DATE and self.by_date:
            keys = self._spelling.exam_of_day_key(_date(parent), name)
            patient = self._index.patient_by_key(keys[0]) if keys else None
            if keys is None or patient is None:
                return None
            return self.exam_entry(self._index.exam_by_key(patient.id, keys[1], selection), view)
        if parent.kind is Kind.PATIENT and not self.by_date:
            key = self._spelling.exam_key(name)
            exam = self._index.exam_by_key(parent.id, key, selection) if key else None
            return self.exam_entry(exam, view)
        return None

    def _find_top(self, name: str, view: View, gate: Gate) -> Entry | None:
        """A date or a patient."""
        selection = self.selection(view, self.top_kind, gate)
        if self.by_date:
            found = self._spelling.dates.read(name)
            if found is None or found[1] or not self._index.day_has_such(found[0], selection):
                return None
            return self.date_entry(self._index.day(found[0]), view)
        key = self._spelling.patient_key(name)
        patient = self._index.patient_by_key(key) if key else None
        if patient is None or not self._index.has_such(patient.id, selection):
            return None
        return self.patient_entry(patient, view)

    def _find_file(self, exam: int, name: str, view: View, gate: Gate) -> Entry | None:
        lowered = _AFTER_NUMBERS.sub(lambda match: match[0].lower(), name)
        parts = parse_file_name(lowered, self._spelling.pad)
        if parts is None or parts.extension != view.extension:
            return None
        mark = gate.mark((view.key, Kind.FILE))
        row = self._image(exam, parts)
        if row is None or parts.frame not in self.shown_frames(row, view, mark):
            return None
        return self.file_entries([(row, parts.frame)], view)[0]

    def _image(self, exam: int, name: FileName) -> ImageRow | None:
        """What a name in an exam leads to, but for its frame."""
        return self._index.image_by_name(
            exam, fold(name.series), name.series_number, name.instance_number, name.suffix
        )

    # Inodes -> entries

    def entry(self, inode: Inode) -> Entry | None:
        """What `stat` says of an inode, or None when there is no such object in this view."""
        if inode == self.root:
            return self.root_entry()
        view = self.views.get(inode.format)
        if view is None:
            return None
        if inode.kind is Kind.TOP:
            return self.view_entry(view) if len(self.views) > 1 else None
        # What has left the view answers as a deleted folder does to those who have it open.
        if inode.kind is Kind.PATIENT:
            return self.patient_entry(self._index.patient(inode.id), view)
        if inode.kind is Kind.DATE:
            return self.date_entry(self._index.day(_date(inode)), view)
        if inode.kind is Kind.EXAM:
            return self.exam_entry(self._index.exam(inode.id), view)
        row = self._index.image_shown(inode.id)
        if row is None or inode.frame not in self.frame_numbers(row, view):
            return None
        return self.file_entries([(row, inode.frame)], view, inode.version)[0]

    # Listings

    def version(self) -> Hashable:
        """While it stays the same, so does every listing in which no size is unknown; costs microseconds.

        But for a size that is announced anew: that is told to who looks (`present.Presenter.resized`).
        """
        written = self._index.data_version(), self._renditions.data_version()
        return (*written, self.gate.moves, self.first_day)

    def listing(self, parent: Inode, after: int, most: int) -> Iterator[Listed]:
        """Entries of a folder after a cookie (0: from the start), at most `most`; none at the end.

        Cookies are made of ids, so a listing that goes on while images arrive neither repeats nor
        misses what was there when it began.
        """
        view = self.view_of(parent)
        if view is None:
            views = list(enumerate(self.views.values(), 1)) if parent == self.root else []
            for place, one in views[after : after + most]:
                yield Listed(place, self.view_entry(one))
        elif parent.kind is Kind.EXAM:
            yield from self._list_files(parent, view, after, most)
        else:
            yield from self._list_folders(parent, view, after, most)

    def _list_folders(self, parent: Inode, view: View, after: int, most: int) -> Iterator[Listed]:
        """The cookie of a patient or an exam is its id; that of a date is the date, and one more."""
        kind = self.top_kind if parent.kind is Kind.TOP else Kind.EXAM
        selection = self.selection(view, kind, self.gate)
        entries: list[Entry | None] = []
        if parent.kind is Kind.TOP and self.by_date:
            last = (f"{after - 1:08}" if after > 1 else "") if after else None
            entries = [self.date_entry(day, view) for day in self._index.day_page(last, most, selection)]
        elif parent.kind is Kind.TOP:
            page = self._index.patient_page(after, most, selection)
            entries = [self.patient_entry(patient, view) for patient in page]
        else:
            exams = []
            if parent.kind is Kind.PATIENT and not self.by_date:
                exams = self._index.exam_page(parent.id, after, most, selection)
            elif parent.kind is Kind.DATE and self.by_date:
                exams = self._index.exams_of_day(_date(parent), after, most, selection)
            entries = [self.exam_entry(exam, view) for exam in exams]
        for entry in entries:
            if entry is not None:
                yield Listed(entry.inode.id + (entry.inode.kind is Kind.DATE), entry)

    def _list_files(self, exam: Inode, view: View, after: int, most: int) -> list[Listed]:
        """A file's cookie is its instance id and frame number."""
        first, done = divmod(after, 1 << FRAME_BITS)
        mark = self.gate.mark((view.key, Kind.FILE))
        files: list[tuple[Named, int]] = []
        sized, selection = view.recipe is None, self._of_exam(view)
        # One more than asked for, since all of the first may have been handed out before.
        for row in self._index.name_page(exam.id, first, most + 1, selection, sized=sized):
            numbers = self.shown_frames(row, view, mark)
            if numbers is WHOLE and row.id != first:
                files.append((row, 0))
            else:
                start = 0 if row.id != first or not after else done + 1
                rest = range(max(numbers.start, start), numbers.stop)
                files += [(row, frame) for frame in rest[: most - len(files)]]
            if len(files) >= most:
                break
        return self._listed(files, view)

    def listing_back(self, exam: Inode, before: int, most: int) -> list[Listed]:
        """Files of an exam before a cookie, the last first, at most `most`; none at the beginning."""
        view = self.view_of(exam)
        if view is None or exam.kind is not Kind.EXAM:
            return []
        last, end = divmod(before, 1 << FRAME_BITS)
        mark = self.gate.mark((view.key, Kind.FILE))
        files: list[tuple[Named, int]] = []
        sized, selection = view.recipe is None, self._of_exam(view)
        for row in self._index.name_page_back(exam.id, last, most + 1, selection, sized=sized):
            numbers = self.shown_frames(row, view, mark)
            rest = range(numbers.start, min(numbers.stop, end) if row.id == last else numbers.stop)
            files += [(row, frame) for frame in reversed(rest[-(most - len(files)) :])]
            if len(files) >= most:
                break
        return self._listed(files, view)

    def _of_exam(self, view: View) -> Selection:
        """What files of an exam that is shown are shown: its day has been looked at."""
        return replace(self.selection(view, Kind.FILE, self.gate), first_day="")

    def _listed(self, files: Sequence[tuple[Named, int]], view: View) -> list[Listed]:
        return [
            Listed(row.id << FRAME_BITS | frame, entry)
            for (row, frame), entry in zip(files, self.file_entries(files, view), strict=True)
        ]

    # Contents

    def stored_file(self, inode: Inode) -> tuple[Path, int] | None:
        """Path and bytes of the stored file behind a `dcm` file."""
        is_stored = inode.kind is Kind.FILE and inode.format == STORED
        row = self._index.image_shown(inode.id) if is_stored else None
        return (self._archive.path(row.hash, row.original), DATA_SET_OFFSET + row.size) if row else None

    def picture(self, inode: Inode) -> Picture | None:
        """What to render for a file that is not stored as such."""
        view = self.views.get(inode.format)
        if inode.kind is not Kind.FILE or view is None or view.recipe is None:
            return None
        row = self._index.image_shown(inode.id)
        if row is None or inode.frame not in self.frame_numbers(row, view):
            return None
        return self.picture_of(row, inode, view.recipe, view)

    def beside(self, folder: Inode, name: FileName) -> tuple[Inode, Picture] | None:
        """The rendered file that bears exactly this name in an exam, if it is shown, and how to render it."""
        view = self.view_of(folder)
        if folder.kind is not Kind.EXAM or view is None or view.recipe is None:
            return None
        mark = self.gate.mark((view.key, Kind.FILE))
        row = self._image(folder.id, name)
        if row is None or name.frame not in self.shown_frames(row, view, mark):
            return None
        version = 0
        if row.pool and view.policy:
            version = max(self._renditions.version(row.pool, view.policy), 1)  # as in `file_entries`
        inode = Inode(Kind.FILE, row.original, view.key, name.frame, version)
        picture = self.picture_of(row, inode, view.recipe, view)
        return (inode, picture) if picture.name == name else None

    def is_uncompressed(self, inode: Inode) -> bool:
        """Whether a file is of a format whose length can be told from the header of its image."""
        view = self.views.get(inode.format)
        return view is not None and view.recipe is not None and FORMATS[view.recipe.format].is_uncompressed

    def disk(self) -> os.statvfs_result:
        """Size and free space of the disk that holds the originals. Raises OSError."""
        return os.statvfs(self._archive.root)

    def pool_sources(self, pool: str, most: int) -> tuple[int, list[Source]]:
        """Highest original a pool shows, and at most `most` of its frames, spaced evenly."""
        members = self._index.pool_members(pool)
        # Arithmetic and no list of frames: a header may claim two thousand million.
        ends = list(accumulate(row.frames for row in members))
        total = ends[-1] if ends else 0
        chosen = min(total, most)
        sources = []
        for place in range(chosen):
            number = place * total // chosen
            member = bisect_right(ends, number)
            row = members[member]
            frame = number - (ends[member] - row.frames)
            sources.append(self.source(row, frame))
        return max((row.original for row in members), default=0), sources

    # Files of an instance, and of many

    def members(self, pool: str) -> Iterator[tuple[Inode, Entry]]:
        """(folder, entry) of every file that depends on a pool's decision, as it is now."""
        rows = self._index.pool_members(pool)
        for view in self.views.values():
            if not view.policy:
                continue
            for row in rows:
                for entry in self.entries_of(row, view):
                    yield Inode(Kind.EXAM, row.exam, view.key), entry

    def names_of(self, instance: int) -> list[tuple[Inode, Entry]]:
        """(folder, entry) of every file that shows one instance, the stored one included."""
        row = self._index.image(instance)
        if row is None:
            return []
        return [
            (Inode(Kind.EXAM, row.exam, view.key), entry)
            for view in self.views.values()
            for entry in self.entries_of(row, view)
        ]

    def files_of(self, instance: int) -> list[Entry]:
        """Every rendered file that shows one instance, in every format; none if its exam is too old."""
        row = self._index.image(instance)
        if row is None or row.day < self.first_day:
            return []
        return [
            entry
            for view in self.views.values()
            if view.recipe is not None
            for entry in self.entries_of(row, view)
        ]

    # Where something is

    def path(self, folder: Inode) -> tuple[str, ...] | None:
        """Names that lead from the root to a folder; None when there is none (any more)."""
        names: list[str] = []
        inode: Inode | None = folder
        while inode is not None and inode != self.root:
            entry = self.entry(inode)
            if entry is None:
                return None
            names.insert(0, entry.name)
            inode = self.parent(inode)
        return tuple(names) if inode is not None else None

    def place_of(self, inode: Inode) -> tuple[Inode, int] | None:
        """The exam that holds a file, and its cookie there: `listing` after it gives what follows."""
        row = self._index.image_shown(inode.id) if inode.kind is Kind.FILE else None
        return (Inode(Kind.EXAM, row.exam, inode.format), row.id << FRAME_BITS | inode.frame) if row else None

    def parent(self, inode: Inode) -> Inode | None:
        """The folder that holds a folder; for `..`."""
        if inode.kind is Kind.EXAM:
            exam = self._index.exam(inode.id)
            return self.holder(exam, inode.format) if exam else None
        return self.top(inode.format) if inode.kind in (Kind.PATIENT, Kind.DATE) else self.root


def _date(inode: Inode) -> str:
    """The date that the inode of a date stands for."""
    return f"{inode.id:08}" if inode.id else ""
