"""Colours as the image's ICC profile means them, in sRGB, which every viewer assumes.

A profile that is broken or not for RGB is left aside. Called by `render`.
"""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms
from pydicom.dataset import Dataset

from dicomfs.attributes import items, octets

TAGS = (0x00282000, 0x00480105)
"""Every attribute that this module reads at the top level."""

MAX_PROFILE_BYTES = 16 << 20
_OPTICAL_PATHS = 0x00480105
_HEADER_BYTES = 128


def profile(ds: Dataset) -> bytes:
    """The ICC profile of a colour image (PS3.3 C.11.15), for microscopy that of its first optical path."""
    sources = [ds, *items(ds, _OPTICAL_PATHS)[:1]]
    found = next((raw for source in sources if (raw := octets(source, 0x00282000)[0])), b"")
    usable = _HEADER_BYTES < len(found) <= MAX_PROFILE_BYTES and found[16:20] == b"RGB "
    return found if usable else b""


def to_srgb(rgb: NDArray[np.uint8], icc: bytes) -> NDArray[np.uint8]:
    """RGB of shape (rows, columns, 3) in the colours of `icc` to sRGB; unchanged when `icc` is unusable."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(icc))
        if _is_srgb(source):
            return rgb
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return rgb
    converted = Image.fromarray(np.ascontiguousarray(rgb))
    transform.apply_in_place(converted)
    return np.array(converted)


def _is_srgb(source: ImageCms.ImageCmsProfile) -> bool:
    """True for the profile that is the target already: conversion would only round."""
    return (ImageCms.getProfileDescription(source) or "").startswith("sRGB")
