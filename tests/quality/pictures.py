"""Formulas on one 8-bit picture, inside the body mask (`images.body_mask`)."""

import numpy as np

from tests.quality.images import Floats, Mask, Picture


def used_range(picture: Picture, body: Mask) -> float:
    """P95 - P5 of the grey values inside the body."""
    low, high = np.percentile(picture[body], [5, 95])
    return float(high - low)


def clipped(picture: Picture, body: Mask) -> tuple[float, float]:
    """Shares of the body at 255 and at 0."""
    inside = picture[body]
    return float((inside == 255).mean()), float((inside == 0).mean())


def entropy(picture: Picture, body: Mask) -> float:
    """Shannon entropy of the grey values inside the body, bits per pixel."""
    share = np.bincount(picture[body], minlength=256) / body.sum()
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def mean_absolute_difference(one: Picture, other: Picture) -> float:
    """Mean |one - other| over the whole picture, grey levels."""
    return float(np.abs(one.astype(np.float64) - other).mean())


def ssim(one: Picture, other: Picture, side: int = 8) -> float:
    """Mean structural similarity (Wang et al. 2004) over square windows of equal weight, stride 1."""
    x, y = one.astype(np.float64), other.astype(np.float64)
    mean_x, mean_y = _local_mean(x, side), _local_mean(y, side)
    variance_x = _local_mean(x * x, side) - mean_x**2
    variance_y = _local_mean(y * y, side) - mean_y**2
    covariance = _local_mean(x * y, side) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return float((luminance * structure).mean())


_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def _local_mean(x: Floats, side: int) -> Floats:
    """Moving averages over `side` x `side`, where the window fits."""
    kernel = np.ones(side) / side
    rows = np.apply_along_axis(np.convolve, 0, x, kernel, "valid")
    return np.apply_along_axis(np.convolve, 1, rows, kernel, "valid")
