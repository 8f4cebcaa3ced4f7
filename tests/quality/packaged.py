"""Images that are always there: the pydicom wheels' and the synthetic cine, with its contours."""

import importlib.util
from pathlib import Path

import numpy as np
import pydicom

from tests import phantom
from tests.quality.separation import FOLDER

SLICES, PHASES = 3, 12


def folders(scratch: Path, *, with_wheels: bool = True) -> list[Path]:
    """Folders to collect from; the cine is written below `scratch`."""
    cine = scratch / "cine"
    phantom.cine(cine / "SAX", SLICES, PHASES)
    (cine / FOLDER).mkdir()
    for level in range(SLICES):
        for phase in range(PHASES):
            for which, outline in zip("io", phantom.ventricle(level, phase, SLICES, PHASES), strict=True):
                number = level * PHASES + phase + 1
                np.savetxt(cine / FOLDER / f"SAX-{number:04}-{which}contour.txt", outline, "%.3f", "\t")
    return [cine, *(wheels() if with_wheels else [])]


def wheels() -> list[Path]:
    """Folders of the files that the pydicom and pydicom-data wheels ship."""
    found = [Path(pydicom.__file__).parent / "data" / "test_files"]
    data = importlib.util.find_spec("data_store")
    if data is not None and data.submodule_search_locations:
        found += [Path(place) / "data" for place in data.submodule_search_locations]
    return [folder for folder in found if folder.is_dir()]
