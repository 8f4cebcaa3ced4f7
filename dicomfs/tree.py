"""The tree, without FUSE: inodes, names, listings and attributes out of the index.

    Patient/ExamDate/Series_Number_Image.jpg             one format: the root of the mount
    ExamDate/Patient/Series_Number_Image.jpg             layout=date/patient
    jpg/Patient/…  dcm/Patient/…                          several: a folder each
    jpg auto/…  jpg C40 W400/…                            several windows: a folder each, too

Everything here answers at once: it reads the index and what is known of renditions, and never renders, waits,
or touches an original. Called by `present.py` and `fuse.py`.
"""

import os
import re
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Final

from dicomfs.archive import DATA_SET_OFFSET, Archive
from dicomfs.entries import Appearance, Disappearance, Entry, Listed, Picture
from dicomfs.gate import Gate, Mark
from dicomfs.index import Index
from dicomfs.inode import STORED, Inode, Kind
from dicomfs.model import Recipe, Source
from dicomfs.naming import FileName, file_name, fold, parse_file_name
from dicomfs.recipes import FORMATS, policy, pool_policy
from dicomfs.recipes import Kind as Made
from dicomfs.renditions import Key, Renditions
from dicomfs.rows import DayRow, ExamRow, ImageRow, NameRow, PatientRow, Removal
from dicomfs.schema import PDF, PICTURES
from dicomfs.selection import ANY, Selection, Since
from dicomfs.spelling import Layout, Spelling

_AFTER_NUMBERS: Final = re.compile(r"(\([0-9A-Fa-f]+\))?(_[0-9]+)?\.[A-Za-z0-9]+$")
"""The parts of a file name behind the numbers: they have no case of their own."""

Named = ImageRow | NameRow
"""An instance with what the names of its files are made of."""

_NONE: Final = range(0)
_WHOLE: Final = range(1)
"""Frame numbers of a file that is not one of several."""
_OPEN: Final = Gate()


@dataclass(frozen=True, slots=True)
class _View:
    """One folder of a mount with several, or the only one."""

    key: str
    label: str
    """Name of its folder."""
    extension: str
    """Without the dot."""
    shows: int
    """Which instances appear: bits of `schema.PICTURES`, `schema.PDF`; 0: all."""
    per_frame: bool
    recipe: Recipe | None
    """None: the stored bytes."""
    digest: str
    policy: str
    """Kind of pool decision it needs; empty: none."""


def _view(key: str, recipe: Recipe | None, digest: str, *, windows: bool) -> _View:
    """`windows`: the mount has several, so a picture's folder names its own."""
    if recipe is None:
        return _View(key, STORED, STORED, 0, per_frame=False, recipe=None, digest="", policy="")
    made = FORMATS[recipe.format]
    label = recipe.format
    if windows and made.kind is Made.PICTURE:
        label += f" {policy(recipe.window).label}"
    shows = PDF if made.only_sop_class else 0 if made.kind is Made.DOCUMENT else PICTURES
    return _View(
        key,
        label,
        made.extension.lstrip("."),
        shows,
        per_frame=made.per_frame,
        recipe=recipe,
        digest=digest,
        policy=pool_policy(recipe),
    )


class Tree:
    """One view of a store."""

    def __init__(
        self,
        index: Index,
        archive: Archive,
        renditions: Renditions,
        recipes: dict[str, tuple[Recipe, str]],
        *,
        formats: Sequence[str],
        frames: int,
        gate: Gate | None = None,
        layout: Layout = Layout.PATIENT_DATE,
        spelling: Spelling | None = None,
        modalities: tuple[str, ...] = (ANY,),
        since: Since | None = None,
        today: Callable[[], date] = date.today,
    ) -> None:
        """`formats`: keys of the views (`view_key`), in order; `recipes`: for each rendered one its recipe
        and the digest that stands for it in `Key`; `gate`: how far names are shown, without one all are;
        `today`: what `since` is counted from.
        """
        self.formats = tuple(formats)
        self.gate = gate or Gate()
        self._by_date = layout is Layout.DATE_PATIENT
        self._spelling = spelling or Spelling()
        self._modalities = modalities
        self._since = since or Since()
        self._today = today
        self._index = index
        self._archive = archive
        self._renditions = renditions
        self._frames = frames
        windows = len({recipe.window for recipe, _ in recipes.values()}) > 1
        self._views = {
            key: _view(key, *recipes.get(key, (None, "")), windows=windows) for key in self.formats
        }

    @property
    def root(self) -> Inode:
        """The inode of the root."""
        return Inode(Kind.TOP)

    def _view_of(self, inode: Inode) -> _View | None:
        """The view that a folder belongs to; None for the root of a mount with several."""
        if not inode.format and len(self.formats) == 1:
            return self._views[self.formats[0]]
        return self._views.get(inode.format)

    @property
    def policies(self) -> frozenset[str]:
        """Kinds of pool decisions in use."""
        return frozenset(view.policy for view in self._views.values() if view.policy)

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
        view = self._view_of(parent)
        if view is None:
            found = next((v for v in self._views.values() if fold(v.label) == fold(name)), None)
            return self._view_entry(found) if found and parent == self.root else None
        if parent.kind is Kind.TOP:
            return self._find_top(name, view, gate)
        if parent.kind is Kind.EXAM:
            return self._find_file(parent.id, name, view, gate)
        selection = self._selection(view, Kind.EXAM, gate)
        if parent.kind is Kind.DATE and self._by_date:
            keys = self._spelling.exam_of_day_key(_date(parent), name)
            patient = self._index.patient_by_key(keys[0]) if keys else None
            if keys is None or patient is None:
                return None
            return self._exam_entry(self._index.exam_by_key(patient.id, keys[1], selection), view)
        if parent.kind is Kind.PATIENT and not self._by_date:
            key = self._spelling.exam_key(name)
            exam = self._index.exam_by_key(parent.id, key, selection) if key else None
            return self._exam_entry(exam, view)
        return None

    def _find_top(self, name: str, view: _View, gate: Gate) -> Entry | None:
        """A date or a patient."""
        selection = self._selection(view, self._top_kind, gate)
        if self._by_date:
            found = self._spelling.dates.read(name)
            if found is None or found[1] or not self._index.day_has_such(found[0], selection):
                return None
            return self._date_entry(self._index.day(found[0]), view)
        key = self._spelling.patient_key(name)
        patient = self._index.patient_by_key(key) if key else None
        if patient is None or not self._index.has_such(patient.id, selection):
            return None
        return self._patient_entry(patient, view)

    def _find_file(self, exam: int, name: str, view: _View, gate: Gate) -> Entry | None:
        lowered = _AFTER_NUMBERS.sub(lambda match: match[0].lower(), name)
        parts = parse_file_name(lowered, self._spelling.pad)
        if parts is None or parts.extension != view.extension:
            return None
        mark = gate.mark((view.key, Kind.FILE))
        row = self._image(exam, parts)
        if row is None or parts.frame not in self._shown_frames(row, view, mark):
            return None
        return self._file_entries([(row, parts.frame)], view)[0]

    def _image(self, exam: int, name: FileName) -> ImageRow | None:
        """What a name in an exam leads to, but for its frame."""
        return self._index.image_by_name(
            exam, fold(name.series), name.series_number, name.instance_number, name.suffix
        )

    # Inodes -> entries

    def entry(self, inode: Inode) -> Entry | None:
        """What `stat` says of an inode, or None when there is no such object in this view."""
        if inode == self.root:
            return self._root_entry()
        view = self._views.get(inode.format)
        if view is None:
            return None
        if inode.kind is Kind.TOP:
            return self._view_entry(view) if len(self.formats) > 1 else None
        # What has left the view answers as a deleted folder does to those who have it open.
        if inode.kind is Kind.PATIENT:
            return self._patient_entry(self._index.patient(inode.id), view)
        if inode.kind is Kind.DATE:
            return self._date_entry(self._index.day(_date(inode)), view)
        if inode.kind is Kind.EXAM:
            return self._exam_entry(self._index.exam(inode.id), view)
        row = self._index.image_shown(inode.id)
        if row is None or inode.frame not in self._frame_numbers(row, view):
            return None
        return self._file_entries([(row, inode.frame)], view, inode.version)[0]

    def _root_entry(self) -> Entry:
        return Entry("", self.root, is_folder=True, size=0, modified=self._top_modified())

    def _view_entry(self, view: _View) -> Entry:
        inode = Inode(Kind.TOP, format=view.key)
        return Entry(view.label, inode, is_folder=True, size=0, modified=self._top_modified())

    def _top_modified(self) -> float:
        """The latest receipt, or the midnight at which something may have left."""
        moved = 0.0
        if self._since.is_moving:
            moved = datetime.combine(self._today(), datetime.min.time()).astimezone().timestamp()
        return max(self._index.last_received(), moved)

    def _patient_entry(self, patient: PatientRow | None, view: _View) -> Entry | None:
        if patient is None or self._by_date:
            return None
        inode = Inode(Kind.PATIENT, patient.id, view.key)
        return Entry(self._spelling.patient(patient.name), inode, True, 0, patient.updated)

    def _date_entry(self, day: DayRow | None, view: _View) -> Entry | None:
        if day is None or not self._by_date:
            return None
        inode = Inode(Kind.DATE, int(day.date or 0), view.key)
        return Entry(self._spelling.dates.write(day.date), inode, True, 0, day.updated)

    def _exam_entry(self, exam: ExamRow | None, view: _View) -> Entry | None:
        if exam is None:
            return None
        if self._by_date:
            name = self._spelling.exam_of_day(exam.patient_name, exam.date, exam.folder)
        else:
            name = self._spelling.exam(exam.date, exam.folder)
        return Entry(name, Inode(Kind.EXAM, exam.id, view.key), True, 0, exam.updated)

    @property
    def first_day(self) -> str:
        """The first day of exams that are shown now, `YYYYMMDD`; empty: all. Moves as time passes."""
        return self._since.first_day(self._today())

    def _selection(self, view: _View, kind: Kind, gate: Gate) -> Selection:
        """What names of this kind are made of now."""
        through = gate.mark((view.key, kind)).sequence
        return Selection(view.shows, self._modalities, self.first_day, through)

    @property
    def _top_kind(self) -> Kind:
        """What the folders on top of a view are."""
        return Kind.DATE if self._by_date else Kind.PATIENT

    def _frame_numbers(self, row: Named, view: _View) -> range:
        """Frame numbers under which an instance appears: 0 alone for one file, none if it does not."""
        if not _takes(view.shows, self._modalities, row.modality, row.shows):
            return _NONE
        if not view.per_frame or row.frames == 1:
            return _WHOLE
        return range(1, min(row.frames, self._frames) + 1)

    def _shown_frames(self, row: Named, view: _View, mark: Mark) -> range:
        """Those of the frame numbers that are published."""
        if row.id > mark.sequence:
            return _NONE
        numbers = self._frame_numbers(row, view)
        return numbers if row.id < mark.sequence else numbers[: max(mark.frame + 1 - numbers.start, 0)]

    def _file_name(self, row: Named, frame: int, view: _View) -> str:
        return file_name(_parts(row, frame, view), self._spelling.pad)

    def _file_entries(
        self, files: Sequence[tuple[Named, int]], view: _View, version: int | None = None
    ) -> list[Entry]:
        """Entries of (instance, frame number) pairs; `version` None: the current one."""
        versions: dict[str, int] = {}
        known: dict[tuple[int, int, int], int] = {}
        if view.recipe and files:
            if version is None and view.policy:
                pools = list({row.pool for row, _ in files if row.pool})
                versions = self._renditions.versions(pools, view.policy)
            originals = list({row.original for row, _ in files})
            numbers = [max(frame - 1, 0) for _, frame in files]
            known = self._renditions.sizes(view.digest, originals, (min(numbers), max(numbers)))
        entries = []
        key, is_stored, of_pool = view.key, view.recipe is None, bool(view.policy)
        for row, frame in files:
            size: int | None
            of_file = 0
            if is_stored:
                size = DATA_SET_OFFSET + row.size
            else:
                if version is not None:
                    of_file = version
                elif of_pool and row.pool:
                    # What nobody has asked for yet will be decided as version 1.
                    of_file = versions.get(row.pool, 1)
                size = known.get((row.original, frame and frame - 1, of_file))
            inode = Inode(Kind.FILE, row.original, key, frame, of_file)
            # A picture that changed must look newer than before, and the same from every mount.
            modified = row.modified + (of_file - 1 if of_file else 0)
            entries.append(Entry(self._file_name(row, frame, view), inode, False, size, modified))
        return entries

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
        view = self._view_of(parent)
        if view is None:
            views = list(enumerate(self._views.values(), 1)) if parent == self.root else []
            for place, one in views[after : after + most]:
                yield Listed(place, self._view_entry(one))
        elif parent.kind is Kind.EXAM:
            yield from self._list_files(parent, view, after, most)
        else:
            yield from self._list_folders(parent, view, after, most)

    def _list_folders(self, parent: Inode, view: _View, after: int, most: int) -> Iterator[Listed]:
        """The cookie of a patient or an exam is its id; that of a date is the date, and one more."""
        kind = self._top_kind if parent.kind is Kind.TOP else Kind.EXAM
        selection = self._selection(view, kind, self.gate)
        entries: list[Entry | None] = []
        if parent.kind is Kind.TOP and self._by_date:
            last = (f"{after - 1:08}" if after > 1 else "") if after else None
            entries = [self._date_entry(day, view) for day in self._index.day_page(last, most, selection)]
        elif parent.kind is Kind.TOP:
            page = self._index.patient_page(after, most, selection)
            entries = [self._patient_entry(patient, view) for patient in page]
        else:
            exams = []
            if parent.kind is Kind.PATIENT and not self._by_date:
                exams = self._index.exam_page(parent.id, after, most, selection)
            elif parent.kind is Kind.DATE and self._by_date:
                exams = self._index.exams_of_day(_date(parent), after, most, selection)
            entries = [self._exam_entry(exam, view) for exam in exams]
        for entry in entries:
            if entry is not None:
                yield Listed(entry.inode.id + (entry.inode.kind is Kind.DATE), entry)

    def _list_files(self, exam: Inode, view: _View, after: int, most: int) -> Iterator[Listed]:
        """A file's cookie is its instance id and frame number."""
        first, done = after >> 14, after & 0x3FFF
        mark = self.gate.mark((view.key, Kind.FILE))
        files: list[tuple[NameRow, int]] = []
        sized = view.recipe is None
        # One more than asked for, since all of the first may have been handed out before.
        selection = replace(self._selection(view, Kind.FILE, self.gate), first_day="")
        for row in self._index.name_page(exam.id, first, most + 1, selection, sized=sized):
            numbers = self._shown_frames(row, view, mark)
            if numbers is _WHOLE and row.id != first:
                files.append((row, 0))
            else:
                start = 0 if row.id != first or not after else done + 1
                rest = range(max(numbers.start, start), numbers.stop)
                files += [(row, frame) for frame in rest[: most - len(files)]]
            if len(files) >= most:
                break
        entries = self._file_entries(files, view)
        for (row, frame), entry in zip(files, entries, strict=True):
            yield Listed(row.id << 14 | frame, entry)

    def listing_back(self, exam: Inode, before: int, most: int) -> list[Listed]:
        """Files of an exam before a cookie, the last first, at most `most`; none at the beginning."""
        view = self._view_of(exam)
        if view is None or exam.kind is not Kind.EXAM:
            return []
        last, end = before >> 14, before & 0x3FFF
        mark = self.gate.mark((view.key, Kind.FILE))
        files: list[tuple[NameRow, int]] = []
        sized = view.recipe is None
        selection = replace(self._selection(view, Kind.FILE, self.gate), first_day="")
        for row in self._index.name_page_back(exam.id, last, most + 1, selection, sized=sized):
            numbers = self._shown_frames(row, view, mark)
            rest = range(numbers.start, min(numbers.stop, end) if row.id == last else numbers.stop)
            files += [(row, frame) for frame in reversed(rest[-(most - len(files)) :])]
            if len(files) >= most:
                break
        entries = self._file_entries(files, view)
        return [
            Listed(row.id << 14 | frame, entry) for (row, frame), entry in zip(files, entries, strict=True)
        ]

    # Contents

    def stored_file(self, inode: Inode) -> tuple[Path, int] | None:
        """Path and bytes of the stored file behind a `dcm` file."""
        is_stored = inode.kind is Kind.FILE and inode.format == STORED
        row = self._index.image_shown(inode.id) if is_stored else None
        return (self._archive.path(row.hash, row.original), DATA_SET_OFFSET + row.size) if row else None

    def picture(self, inode: Inode) -> Picture | None:
        """What to render for a file that is not stored as such."""
        view = self._views.get(inode.format)
        if inode.kind is not Kind.FILE or view is None or view.recipe is None:
            return None
        row = self._index.image_shown(inode.id)
        if row is None or inode.frame not in self._frame_numbers(row, view):
            return None
        return self._picture(row, inode, view.recipe, view)

    def _picture(self, row: ImageRow, inode: Inode, recipe: Recipe, view: _View) -> Picture:
        frame = max(inode.frame - 1, 0)
        key = Key(view.digest, row.original, frame, inode.version)
        source = Source(self._archive.path(row.hash, row.original), frame, row.layout)
        pool = row.pool if view.policy else ""
        folder, name = Inode(Kind.EXAM, row.exam, view.key), _parts(row, inode.frame, view)
        cookie = row.id << 14 | inode.frame
        return Picture(key, source, recipe, pool, view.policy, folder, cookie, name)

    def beside(self, folder: Inode, name: FileName) -> tuple[Inode, Picture] | None:
        """The rendered file that bears exactly this name in an exam, if it is shown, and how to render it."""
        view = self._view_of(folder)
        if folder.kind is not Kind.EXAM or view is None or view.recipe is None:
            return None
        mark = self.gate.mark((view.key, Kind.FILE))
        row = self._image(folder.id, name)
        if row is None or name.frame not in self._shown_frames(row, view, mark):
            return None
        version = 0
        if row.pool and view.policy:
            version = max(self._renditions.version(row.pool, view.policy), 1)  # as in `_file_entries`
        inode = Inode(Kind.FILE, row.original, view.key, name.frame, version)
        picture = self._picture(row, inode, view.recipe, view)
        return (inode, picture) if picture.name == name else None

    def is_uncompressed(self, inode: Inode) -> bool:
        """Whether a file is of a format whose length can be told from the header of its image."""
        view = self._views.get(inode.format)
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
            sources.append(Source(self._archive.path(row.hash, row.original), frame, row.layout))
        return max((row.original for row in members), default=0), sources

    def members(self, pool: str) -> Iterator[tuple[Inode, Entry]]:
        """(folder, entry) of every file that depends on a pool's decision, as it is now."""
        rows = self._index.pool_members(pool)
        for view in self._views.values():
            if not view.policy:
                continue
            for row in rows:
                files = [(row, frame) for frame in self._frame_numbers(row, view)]
                for entry in self._file_entries(files, view):
                    yield Inode(Kind.EXAM, row.exam, view.key), entry

    def files_of(self, instance: int) -> list[Entry]:
        """Every rendered file that shows one instance, in every format; none if its exam is too old."""
        row = self._index.image(instance)
        if row is None or row.day < self.first_day:
            return []
        return [
            entry
            for view in self._views.values()
            if view.recipe is not None
            for entry in self._file_entries([(row, f) for f in self._frame_numbers(row, view)], view)
        ]

    @property
    def scopes(self) -> tuple[str, ...]:
        """For each rendered view a text; where two mounts have the same one, their files are the same."""
        which = f"{self._frames} {'+'.join(self._modalities)} {self._since.text}".rstrip()
        return tuple(f"{view.digest} {which}" for view in self._views.values() if view.recipe is not None)

    def names_of(self, instance: int) -> list[tuple[Inode, Entry]]:
        """(folder, entry) of every file that shows one instance, the stored one included."""
        row = self._index.image(instance)
        if row is None:
            return []
        return [
            (Inode(Kind.EXAM, row.exam, view.key), entry)
            for view in self._views.values()
            for entry in self._file_entries([(row, f) for f in self._frame_numbers(row, view)], view)
        ]

    def appearances(self, sequence: int, instance: int) -> Iterator[Appearance]:
        """Names that the original of this receipt number brought with it, in every view, folders first."""
        row = self._index.image(instance)
        exam = self._index.exam(row.exam) if row else None
        if row is None or exam is None:
            return
        for view in self._views.values():
            selection = Selection(view.shows, self._modalities, self.first_day, sequence)
            earlier = replace(selection, through=sequence - 1)
            if not self._index.exam_has_such(exam.id, exam.date, selection):
                continue
            holder, entry = self._holder(exam, view.key), self._exam_entry(exam, view)
            above = self.entry(holder)
            if above is not None and not self._holds_such(exam, earlier):
                rank = (view.key, holder.kind)
                yield Appearance(self._top(view), above.name, True, rank, Mark(sequence))
            if entry is not None and not self._index.exam_has_such(exam.id, exam.date, earlier):
                yield Appearance(holder, entry.name, True, (view.key, Kind.EXAM), Mark(sequence))
            if instance != sequence:
                continue
            rank, folder = (view.key, Kind.FILE), Inode(Kind.EXAM, exam.id, view.key)
            for frame in self._frame_numbers(row, view):
                name = self._file_name(row, frame, view)
                yield Appearance(folder, name, False, rank, Mark(sequence, frame))

    def disappearances(self, removal: Removal) -> Iterator[Disappearance]:
        """Names that went from the views of this mount with something that was forgotten."""
        for view in self._views.values():
            exam, top = self._exam_entry(removal.exam, view), self._top(view)
            if self._by_date:
                above = self._date_entry(DayRow(removal.exam.date, removal.exam.updated), view)
            else:
                above = self._patient_entry(removal.patient, view)
            if above is None or exam is None:
                continue
            if removal.image is not None:
                files = [(removal.image, frame) for frame in self._frame_numbers(removal.image, view)]
                for (row, frame), entry in zip(files, self._file_entries(files, view), strict=True):
                    mark = Mark(row.id, frame)
                    yield Disappearance(top, (above, exam, entry), (view.key, Kind.FILE), mark)
                continue
            selection = self._selection(view, Kind.EXAM, self.gate)
            since = min((held.since for held in removal.held if held.is_of(selection)), default=None)
            if since is None:
                continue
            if not self._index.exam_has_such(removal.exam.id, removal.exam.date, selection):
                yield Disappearance(top, (above, exam), (view.key, Kind.EXAM), Mark(since))
            selection = self._selection(view, self._top_kind, self.gate)
            if not self._holds_such(removal.exam, selection):
                yield Disappearance(top, (above,), (view.key, self._top_kind), Mark(since))

    def _holds_such(self, exam: ExamRow, selection: Selection) -> bool:
        """Whether the folder that an exam is in has anything of a selection."""
        if self._by_date:
            return self._index.day_has_such(exam.date, selection)
        return self._index.has_such(exam.patient, selection)

    def _top(self, view: _View) -> Inode:
        """The folder that holds a view's patients."""
        return Inode(Kind.TOP, format=view.key if len(self.formats) > 1 else "")

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
        return (Inode(Kind.EXAM, row.exam, inode.format), row.id << 14 | inode.frame) if row else None

    def parent(self, inode: Inode) -> Inode | None:
        """The folder that holds a folder; for `..`."""
        if inode.kind is Kind.EXAM:
            exam = self._index.exam(inode.id)
            return self._holder(exam, inode.format) if exam else None
        several = len(self.formats) > 1 and inode.kind in (Kind.PATIENT, Kind.DATE)
        return Inode(Kind.TOP, format=inode.format if several else "")

    def _holder(self, exam: ExamRow, key: str) -> Inode:
        """The folder that an exam is in."""
        if self._by_date:
            return Inode(Kind.DATE, int(exam.date or 0), key)
        return Inode(Kind.PATIENT, exam.patient, key)

    # As time passes

    def left(self, before: str, now: str, most: int = 500) -> Iterator[Disappearance]:
        """Each folder that was shown while `first_day` was `before` and is not since `now`.

        What is inside another comes first. Exams, and the patients or dates of which nothing is left; a
        folder that still has something of a view is not among them.
        """
        holders: dict[Inode, ExamRow] = {}
        place = (before, 0)
        while page := self._index.exams_between(place, now, most):
            for _, exam in page:
                for view in self._views.values():
                    former = replace(self._selection(view, Kind.EXAM, self.gate), first_day=before)
                    holder = self._holder(exam, view.key)
                    entry, above = self._exam_entry(exam, view), self.entry(holder)
                    if entry is None or above is None:
                        continue
                    if self._index.exam_has_such(exam.id, exam.date, former):
                        holders[holder] = exam
                        yield Disappearance(self._top(view), (above, entry), (view.key, Kind.EXAM), Mark(0))
            day, last = page[-1]
            place = (day, last.id)
        for holder, exam in holders.items():
            view = self._views[holder.format]
            present = replace(self._selection(view, holder.kind, self.gate), first_day=now)
            entry = self.entry(holder)
            if entry is not None and not self._holds_such(exam, present):
                yield Disappearance(self._top(view), (entry,), (view.key, holder.kind), Mark(0))


@lru_cache(maxsize=256)
def _takes(view_shows: int, modalities: tuple[str, ...], modality: str, shows: int) -> bool:
    return Selection(view_shows, modalities).takes(modality, shows)


def _parts(row: Named, frame: int, view: _View) -> FileName:
    """What the name of a file is made of."""
    return FileName(row.label, row.series_number, row.number, row.suffix, frame, view.extension)


def _date(inode: Inode) -> str:
    """The date that the inode of a date stands for."""
    return f"{inode.id:08}" if inode.id else ""
