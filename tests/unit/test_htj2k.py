"""High-Throughput JPEG 2000 (PS3.5 A.4.11): a stream of another encoder, pixels of a known formula."""

from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from dicomfs.image import open_image
from dicomfs.model import Recipe, Source
from dicomfs.pixels import grey
from dicomfs.render import render

ROWS, COLUMNS = 12, 20
STREAM = b64decode("""
/0//UQApQAAAAAAUAAAADAAAAAAAAAAAAAAAFAAAAAwAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCI
kJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAALIAAf+TwAAmCfMFB3QAwAATAGz8Awd0AMAA
EsAAE8AAEoDxAAd0ACTO4ADCNAD+AEd0AMAAE0AAFRAABGA5/QACdAD1O/0A5PY1AAkzAMAAFVAABXQAASCyZWX+0Y/hi3YAtNNO
O+004CD+QgG+uADwxHQAwAArYAAWvAACcEAgEAhMz+/kenECdwCkSUlJSUlJSUnL8vyKM4xge/Yxgey8AP9//kBwVQD/2Q==
""")
"""Made by OpenJPH 0.26.3 (reversible) from the values of `expected`, 16 bit."""


def expected() -> NDArray[np.int64]:
    rows, columns = np.indices((ROWS, COLUMNS), np.int64)
    found: NDArray[np.int64] = (rows * 211 + columns * 97) % 4096
    return found


def save(path: Path, syntax: str) -> Path:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = "1.2.840.10008.5.1.4.1.1.2", "2.25.201", "CT"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = ROWS, COLUMNS, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.PixelData = encapsulate([STREAM])
    ds.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("number", [201, 202, 203])
def test_stored_values_are_those_that_were_encoded(tmp_path: Path, number: int) -> None:
    """Lossless, lossless with resolution levels first (RPCL), and the syntax that may be lossy."""
    path = save(tmp_path / "ht.dcm", f"1.2.840.10008.1.2.4.{number}")
    with open_image(path) as image:
        found = grey(image, 0)
    assert found.levels is not None
    assert np.array_equal(found.levels[found.codes], expected())
    assert render(Source(path), Recipe("png"), None).startswith(b"\x89PNG")
