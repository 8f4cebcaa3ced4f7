"""Fidelity: the header's window as dicomfs shows it, against `dcmj2pnm -O +Wi 1`, in grey levels.

DCMTK truncates where dicomfs rounds, so one level is agreement (and half a level the mean to expect). Where
the two are known to mean different things an image is not compared, and counted by the reason. A second row
says how many pictures are, pixel for pixel, what PS3.3's formula gives in double precision.
"""

from collections.abc import Iterator

import numpy as np

from tests.quality.contestants import EACH_ITS_OWN, FIDELITY, HEADER, NAMES, ORTHANC, OURS, ours
from tests.quality.images import HeaderWindow, Image, Picture, has_functional_groups
from tests.quality.report import Gate, Row, Shown

MOST, SHARE = 1, 0.99
NAMED = 4


class Fidelity:
    """Share of images whose greatest difference is at most 1; share of those that equal the formula."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, tuple[int, float]]] = {}
        self._left_out: dict[str, list[str]] = {}
        self._equal: dict[str, bool] = {}

    def look(self, shown: Shown) -> None:
        """Every distinct image with a header window."""
        for image, pictures in shown.new():
            if image.window is None:
                continue
            mine = ours(image.path, image.frame, EACH_ITS_OWN)
            self._compare_with_formula(image, mine, pictures[HEADER])
            reference = pictures[FIDELITY]
            reason = "DCMTK cannot read it" if reference is None else _incomparable(image)
            if reason or reference is None:
                self._left_out.setdefault(reason, []).append(image.name)
                continue
            inside = ~image.padding  # DCMTK shows padding as if it were image
            contenders = {OURS: mine, HEADER: pictures[HEADER], ORTHANC: pictures[ORTHANC]}
            for name, picture in contenders.items():
                if picture is not None and picture.shape == reference.shape:
                    difference = np.abs(picture.astype(int) - reference)[inside]
                    most, mean = int(difference.max(initial=0)), float(difference.mean())
                    self._found.setdefault(name, {})[image.name] = most, mean

    def _compare_with_formula(self, image: Image, mine: Picture | None, formula: Picture | None) -> None:
        if mine is None or formula is None or mine.shape != formula.shape:
            return
        if not _cause_known(image):
            inside = ~image.padding
            self._equal[image.name] = bool((mine[inside] == formula[inside]).all())

    def rows(self) -> Iterator[Row]:
        """Every outlier of ours is named."""
        shares = {
            name: f"{100 * sum(most <= MOST for most, _ in found.values()) / len(found):.1f} %"
            for name, found in self._found.items()
        }
        mine = self._found.get(OURS, {})
        good = sum(most <= MOST for most, _ in mine.values())
        notes = [
            f"max {most}, mean {mean:.2f}  {case}: UNEXPLAINED"
            for case, (most, mean) in sorted(mine.items())
            if most > MOST
        ]
        for reason, names in self._left_out.items():
            notes.append(f"not compared, {len(names)}: {reason}: {', '.join(names[:NAMED])}")
            notes[-1] += " …" if len(names) > NAMED else ""
        if mine:
            notes.append(
                f"greatest mean difference {max(m for most, m in mine.values() if most <= MOST):.2f}"
            )
        figures = {name: shares[name] for name in NAMES if name in shares}
        gate = Gate("dicomfs >= 99 %", good >= SHARE * len(mine) if mine else None)
        yield Row("fidelity: within 1 level of DCMTK +Wi 1", len(mine), figures, gate, notes)
        if self._equal:
            share = 100 * sum(self._equal.values()) / len(self._equal)
            unequal = [case for case, equal in self._equal.items() if not equal]
            yield Row("fidelity: equal to the formula", len(self._equal), {OURS: f"{share:.1f} %"},
                      notes=unequal)  # fmt: skip


def _incomparable(image: Image) -> str:
    """Why DCMTK and the standard are known to differ on this image; empty: they are not."""
    ds, window = image.ds, image.window
    if known := _cause_known(image):
        return known
    if has_functional_groups(ds):
        return "functional groups: DCMTK applies the shared rescale only"
    if window is not None and window.function == "LINEAR_EXACT":
        return "LINEAR_EXACT: DCMTK takes it for LINEAR"
    if window is not None and window.function == "SIGMOID":
        return "SIGMOID: DCMTK takes it for LINEAR unless told +Wfs"
    if ds.get_item("WindowCenter") is not None and ds.get_item("WindowCenter").VR == "UN":
        return "VR UN: DCMTK does not see the window"
    signed = ds.get("PixelRepresentation") == 1
    limits = (-(2 ** (image.bits - 1)), 2 ** (image.bits - 1)) if signed else (0, 2**image.bits)
    if image.stored.min() < limits[0] or image.stored.max() >= limits[1]:
        return "values above Bits Stored: DCMTK wraps them"
    return ""


def _cause_known(image: Image) -> str:
    """Why dicomfs itself departs from the header's window; empty: it does not."""
    if image.ds.get("VOILUTSequence"):
        return "a VOI LUT beside the window"
    if image.window_class == "off-data" or (image.window is not None and _beside(image, image.window)):
        return "the window lies beside the modality values: tried on stored values, else not used"
    return _IDENTITY if image.window is not None and _is_identity(image, image.window) else ""


_IDENTITY = "a window of all 8 bits, give or take one or two: dicomfs shows them as they are"


def _is_identity(image: Image, window: HeaderWindow) -> bool:
    """127/254, 128/256 and the like."""
    low, high = window.ends
    return image.bits <= 8 and abs(low) <= 1.5 and abs(high - 255) <= 2.5


def _beside(image: Image, window: HeaderWindow) -> bool:
    values = image.values[~image.padding]
    return not values.size or window.ends[1] <= values.min() or window.ends[0] >= values.max()
