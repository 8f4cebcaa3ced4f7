"""Which transfer syntaxes the images of some folders use, who decodes them, and how many can be shown."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from dicomfs.attributes import DAMAGE
from dicomfs.errors import NotDicom, NotDisplayable, UnreadableDataSet
from dicomfs.header import read_file_meta
from dicomfs.image import NATIVE
from dicomfs.model import Recipe, Source
from dicomfs.pixels import _PLUGINS
from dicomfs.render import render
from dicomfs.video import VIDEO_SYNTAXES


def decoder(syntax: UID) -> str:
    """The libraries that are asked, in order."""
    if syntax in VIDEO_SYNTAXES:
        return "PyAV"
    if syntax in NATIVE or syntax == DeflatedExplicitVRLittleEndian:
        return "none needed"
    return ", ".join(_PLUGINS.get(syntax, ("pylibjpeg",)))


def table(folders: Iterable[Path]) -> Iterator[str]:
    """One line for each transfer syntax: files with pixel data, those whose first frame is shown."""
    files: Counter[UID] = Counter()
    shown: Counter[UID] = Counter()
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            syntax, is_shown = _look(path)
            if syntax is not None:
                files[syntax] += 1
                shown[syntax] += is_shown
    yield f"{'transfer syntax':27} {'name':60} {'decoder':20} {'files':>5} {'shown':>5}"
    for syntax, count in files.most_common():
        name = syntax.name.split(":")[0]
        yield f"{syntax:27} {name[:60]:60} {decoder(syntax):20} {count:5} {shown[syntax]:5}"


def _look(path: Path) -> tuple[UID | None, bool]:
    """Transfer syntax of an image (None: it is none), and whether its first frame can be shown."""
    try:
        with path.open("rb") as file:
            syntax = UID(read_file_meta(file).transfer_syntax)
        render(Source(path), Recipe("jpg"), None)
    except NotDisplayable as error:
        return (None if "no pixel data" in str(error) else syntax), False
    except (NotDicom, UnreadableDataSet, *DAMAGE):
        return None, False
    return syntax, True
