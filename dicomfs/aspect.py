"""How one mount shows a store: rows of the index -> names, inodes, attributes, and what to render.

    Patient/ExamDate/Series_Number_Image.jpg             one format: the root of the mount
    ExamDate/Patient/Series_Number_Image.jpg             layout=date/patient
    jpg/Patient/…  dcm/Patient/…                          several: a folder each
    jpg auto/…  jpg C40 W400/…                            several windows: a folder each, too

Finds no row: `tree.py`, built on this, does, and `changes.py` for what has come or gone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from typing import Final

from dicomfs.archive import Archive
from dicomfs.entries import Entry, Picture
from dicomfs.filemeta import DATA_SET_OFFSET
from dicomfs.gate import Gate, Mark
from dicomfs.index import Index
from dicomfs.inode import STORED, Inode, Kind
from dicomfs.model import Recipe, Source
from dicomfs.naming import FileName, file_name
from dicomfs.recipes import FORMATS, policy, pool_policy
from dicomfs.recipes import Kind as Made
from dicomfs.renditions import Key, Renditions
from dicomfs.rows import DayRow, ExamRow, ImageRow, NameRow, PatientRow
from dicomfs.schema import PDF, PICTURES
from dicomfs.selection import ANY, Selection, Since
from dicomfs.spelling import Layout, Spelling

FRAME_BITS: Final = 14
"""The cookie of a file is the id of its instance, and in so many bits the number of its frame."""

Named = ImageRow | NameRow
"""An instance with what the names of its files are made of."""

_NONE: Final = range(0)
WHOLE: Final = range(1)
"""Frame numbers of a file that is not one of several."""


@dataclass(frozen=True, slots=True)
class View:
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


def _view(key: str, recipe: Recipe | None, digest: str, *, windows: bool) -> View:
    """`windows`: the mount has several, so a picture's folder names its own."""
    if recipe is None:
        return View(key, STORED, STORED, 0, per_frame=False, recipe=None, digest="", policy="")
    made = FORMATS[recipe.format]
    label = recipe.format
    if windows and made.kind is Made.PICTURE:
        label += f" {policy(recipe.window).label}"
    shows = PDF if made.only_sop_class else 0 if made.kind is Made.DOCUMENT else PICTURES
    return View(
        key,
        label,
        made.extension.lstrip("."),
        shows,
        per_frame=made.per_frame,
        recipe=recipe,
        digest=digest,
        policy=pool_policy(recipe),
    )


class Aspect:
    """One way of showing a store."""

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
        self.gate = gate or Gate()
        self.by_date = layout is Layout.DATE_PATIENT
        self._spelling = spelling or Spelling()
        self._modalities = modalities
        self._since = since or Since()
        self._today = today
        self._index = index
        self._archive = archive
        self._renditions = renditions
        self._frames = frames
        windows = len({recipe.window for recipe, _ in recipes.values()}) > 1
        self.views = {key: _view(key, *recipes.get(key, (None, "")), windows=windows) for key in formats}
        self._only = next(iter(self.views.values())) if len(self.views) == 1 else None

    # What is shown

    @property
    def policies(self) -> frozenset[str]:
        """Kinds of pool decisions in use."""
        return frozenset(view.policy for view in self.views.values() if view.policy)

    @property
    def scopes(self) -> tuple[str, ...]:
        """For each rendered view a text; where two mounts have the same one, their files are the same."""
        which = f"{self._frames} {'+'.join(self._modalities)} {self._since.text}".rstrip()
        return tuple(f"{view.digest} {which}" for view in self.views.values() if view.recipe is not None)

    @property
    def first_day(self) -> str:
        """The first day of exams that are shown now, `YYYYMMDD`; empty: all. Moves as time passes."""
        return self._since.first_day(self._today())

    def selection(self, view: View, kind: Kind, gate: Gate) -> Selection:
        """What names of this kind are made of now."""
        through = gate.mark((view.key, kind)).sequence
        return Selection(view.shows, self._modalities, self.first_day, through)

    def frame_numbers(self, row: Named, view: View) -> range:
        """Frame numbers under which an instance appears: 0 alone for one file, none if it does not."""
        if not _takes(view.shows, self._modalities, row.modality, row.shows):
            return _NONE
        if not view.per_frame or row.frames == 1:
            return WHOLE
        return range(1, min(row.frames, self._frames) + 1)

    def shown_frames(self, row: Named, view: View, mark: Mark) -> range:
        """Those of the frame numbers that are published."""
        if row.id > mark.sequence:
            return _NONE
        numbers = self.frame_numbers(row, view)
        return numbers if row.id < mark.sequence else numbers[: max(mark.frame + 1 - numbers.start, 0)]

    # Where it is shown

    @property
    def root(self) -> Inode:
        """The inode of the root."""
        return Inode(Kind.TOP)

    def view_of(self, inode: Inode) -> View | None:
        """The view that a folder belongs to; None for the root of a mount with several."""
        return self.views.get(inode.format) if inode.format else self._only

    @property
    def top_kind(self) -> Kind:
        """What the folders on top of a view are."""
        return Kind.DATE if self.by_date else Kind.PATIENT

    def top(self, key: str) -> Inode:
        """The folder that holds a view's patients, or dates."""
        return Inode(Kind.TOP, format=key if len(self.views) > 1 else "")

    def holder(self, exam: ExamRow, key: str) -> Inode:
        """The folder that an exam is in."""
        if self.by_date:
            return Inode(Kind.DATE, int(exam.date or 0), key)
        return Inode(Kind.PATIENT, exam.patient, key)

    # Entries

    def root_entry(self) -> Entry:
        """The root of the mount."""
        return Entry("", self.root, is_folder=True, size=0, modified=self._top_modified())

    def view_entry(self, view: View) -> Entry:
        """The folder of a view, if there are several."""
        inode = Inode(Kind.TOP, format=view.key)
        return Entry(view.label, inode, is_folder=True, size=0, modified=self._top_modified())

    def _top_modified(self) -> float:
        """The latest receipt, or the midnight at which something may have left."""
        moved = 0.0
        if self._since.is_moving:
            moved = datetime.combine(self._today(), datetime.min.time()).astimezone().timestamp()
        return max(self._index.last_received(), moved)

    def patient_entry(self, patient: PatientRow | None, view: View) -> Entry | None:
        """A patient's folder; None where dates are on top."""
        if patient is None or self.by_date:
            return None
        inode = Inode(Kind.PATIENT, patient.id, view.key)
        return Entry(self._spelling.patient(patient.name), inode, True, 0, patient.updated)

    def date_entry(self, day: DayRow | None, view: View) -> Entry | None:
        """The folder of a date; None where patients are on top."""
        if day is None or not self.by_date:
            return None
        inode = Inode(Kind.DATE, int(day.date or 0), view.key)
        return Entry(self._spelling.dates.write(day.date), inode, True, 0, day.updated)

    def exam_entry(self, exam: ExamRow | None, view: View) -> Entry | None:
        """The folder of an exam."""
        if exam is None:
            return None
        if self.by_date:
            name = self._spelling.exam_of_day(exam.patient_name, exam.date, exam.folder)
        else:
            name = self._spelling.exam(exam.date, exam.folder)
        return Entry(name, Inode(Kind.EXAM, exam.id, view.key), True, 0, exam.updated)

    def file_name(self, row: Named, frame: int, view: View) -> str:
        """The name of one file; `frame` as in an inode."""
        return file_name(_parts(row, frame, view), self._spelling.pad)

    def entries_of(self, row: Named, view: View) -> list[Entry]:
        """Every file of a view that shows an instance."""
        return self.file_entries([(row, frame) for frame in self.frame_numbers(row, view)], view)

    def file_entries(
        self, files: Sequence[tuple[Named, int]], view: View, version: int | None = None
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
            entries.append(Entry(self.file_name(row, frame, view), inode, False, size, modified))
        return entries

    # Contents

    def source(self, row: ImageRow, frame: int) -> Source:
        """What to render a frame of an instance from; the first is 0."""
        return Source(self._archive.path(row.hash, row.original), frame, row.layout)

    def picture_of(self, row: ImageRow, inode: Inode, recipe: Recipe, view: View) -> Picture:
        """What to render for the file of a view that shows an instance; `recipe`: that of the view."""
        frame = max(inode.frame - 1, 0)
        return Picture(
            Key(view.digest, row.original, frame, inode.version),
            self.source(row, frame),
            recipe,
            row.pool if view.policy else "",
            view.policy,
            Inode(Kind.EXAM, row.exam, view.key),
            row.id << FRAME_BITS | inode.frame,
            _parts(row, inode.frame, view),
        )


@lru_cache(maxsize=256)
def _takes(view_shows: int, modalities: tuple[str, ...], modality: str, shows: int) -> bool:
    return Selection(view_shows, modalities).takes(modality, shows)


def _parts(row: Named, frame: int, view: View) -> FileName:
    """What the name of a file is made of."""
    return FileName(row.label, row.series_number, row.number, row.suffix, frame, view.extension)
