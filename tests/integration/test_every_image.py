"""Every image of the pydicom wheels in every still format, and the few that cannot be shown, by name.

With DICOMFS_TEST_DATA=FOLDER the images of that folder are looked at too; those of it that are known not to
be displayable are listed here as well, so that a file that joins them is a regression.
"""

import os
import warnings
from pathlib import Path

from tests.quality.packaged import wheels
from tests.survey import survey

PACKAGED = {
    "JPEG2000-embedded-sequence-delimiter.dcm": "Its compressed image is 3722445056 x 1024 pixels",
    "MR_truncated.dcm": "Its pixel data are cut short: 8130 of 8192 bytes.",
    "nested_priv_SQ.dcm": "It does not say how many rows and columns the image has.",
}
WIDER = {
    **PACKAGED,
    "pixeldata_half.dcm": "Its pixel data are cut short: 65536 of 131072 bytes.",
    "dwv-test_no-number-rows.dcm": "It does not say how many rows and columns the image has.",
    "2026-05-26-oob-monochrome-65535.dcm": "The image is too large: 65535 x 65535 pixels.",
    "liver_nonbyte_aligned_rle.dcm": "Its pixel data are damaged (RLE Lossless).",
    # fo-dicom's: its last frame is another, smaller image.
    "multiframe.dcm": "Its compressed image is 55 x 121 pixels",
}
"""File name -> how the reason begins."""
LEAST = 150
"""Images in the wheels: should they go elsewhere, this test must not pass over nothing."""


def check(folders: list[Path], known: dict[str, str], least: int) -> None:
    images, faults = 0, list[str]()
    reasons: dict[str, str] = {}
    with warnings.catch_warnings(action="ignore"):  # libraries grumble about these files, rightly
        for folder in folders:
            found = survey(folder)
            images += found.images
            reasons |= {Path(name).name: reason for name, reason in found.reasons.items()}
            faults += found.faults
    assert faults == []
    assert {name: reason[: len(known.get(name, reason))] for name, reason in reasons.items()} == known
    assert images >= least


def test_every_packaged_image_is_shown_in_every_format() -> None:
    check(wheels(), PACKAGED, LEAST)


if "DICOMFS_TEST_DATA" in os.environ:

    def test_every_image_of_a_folder_of_ones_own() -> None:
        check([Path(os.environ["DICOMFS_TEST_DATA"])], WIDER, 1)
