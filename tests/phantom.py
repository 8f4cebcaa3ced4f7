"""A synthetic cardiac cine: short-axis slices through a chest whose heart beats.

Made of soft-edged ellipses, a receive coil in front of the chest, and noise of a fixed seed; the same
bytes on every run. As many scanners do, each image carries a window that is its own minimum and maximum,
and a few bright pixels of flowing blood make that window dark and unsteady: what adaptive windowing is for.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

SIZE = 192
SPACING_MM = 1.8
SLICE_DISTANCE_MM = 10.0
RR_INTERVAL_MS = 900.0
NOISE = 14.0
ROW_DIRECTION = (0.680000, 0.640000, -0.357771)
COLUMN_DIRECTION = (-0.193770, -0.313741, -0.929527)
FIRST_POSITION_MM = (-96.0, -150.0, 190.0)

AIR, LUNG, MUSCLE, MYOCARDIUM, LIVER, BONE, BLOOD, FAT = 4.0, 45.0, 220.0, 260.0, 360.0, 300.0, 850.0, 720.0

Image = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Ellipse:
    """Centre, half axes in pixels, rotation in degrees."""

    x: float
    y: float
    a: float
    b: float
    turn: float = 0.0

    def outline(self, points: int = 120) -> Image:
        """(x, y) of points on it, shape (points, 2); for ellipses that are not turned."""
        angles = np.linspace(0.0, 2 * math.pi, points, endpoint=False)
        return np.stack([self.x + self.a * np.cos(angles), self.y + self.b * np.sin(angles)], axis=1)

    def mask(self) -> Image:
        """1 inside, 0 outside, a linear edge about 1.5 pixels wide."""
        y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64)
        cos, sin = math.cos(math.radians(self.turn)), math.sin(math.radians(self.turn))
        u = ((x - self.x) * cos + (y - self.y) * sin) / self.a
        v = ((y - self.y) * cos - (x - self.x) * sin) / self.b
        edge: Image = np.clip(0.5 - (np.sqrt(u * u + v * v) - 1.0) * min(self.a, self.b) / 1.5, 0.0, 1.0)
        return edge


def cine(folder: Path, slices: int = 3, phases: int = 12) -> list[Path]:
    """Write `slices` x `phases` MR images of one series into `folder`, slice by slice; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for level in range(slices):
        for phase in range(phases):
            path = folder / f"SAX_{level + 1:02d}_{phase + 1:02d}.dcm"
            _data_set(level, phase, slices, phases).save_as(path, enforce_file_format=True)
            paths.append(path)
    return paths


def stored_values(level: int, phase: int, slices: int = 3, phases: int = 12) -> NDArray[np.uint16]:
    """Pixels of one image, uint16 of SIZE x SIZE with values below 4096."""
    depth = level / max(slices - 1, 1)
    contraction = _contraction(phase / phases)
    image = _chest(depth)
    _paint_heart(image, depth, contraction)
    gain = 1.35 - 0.75 * np.linspace(0.0, 1.0, SIZE)[:, np.newaxis]
    random = np.random.RandomState(1000 * level + phase)  # its stream never changes
    real = image * gain + random.standard_normal((SIZE, SIZE)) * NOISE
    imaginary = random.standard_normal((SIZE, SIZE)) * NOISE
    magnitude = np.hypot(real, imaginary)
    _add_inflow(magnitude, contraction, random)
    return np.clip(np.rint(magnitude), 0, 4095).astype(np.uint16)


def ventricle(level: int, phase: int, slices: int = 3, phases: int = 12) -> tuple[Image, Image]:
    """Inner and outer contour of the left ventricle: (x, y) in pixels, shape (points, 2)."""
    blood, muscle = _left_ventricle(level / max(slices - 1, 1), _contraction(phase / phases))
    return blood.outline(), muscle.outline()


def _contraction(moment: float) -> float:
    """0: filled, 1: end of systole, at about a third of the beat; `moment` is 0 to 1."""
    if moment < 0.7:
        return math.sin(math.pi * moment / 0.7) ** 2
    return 0.12 * math.sin(math.pi * (moment - 0.7) / 0.3) ** 2


def _paint(image: Image, mask: Image, value: float) -> None:
    image += mask * (value - image)


def _chest(depth: float) -> Image:
    """All that does not move; `depth` is 0 at the base of the heart, 1 at its apex."""
    image = np.full((SIZE, SIZE), AIR)
    for shape, value in (
        (_Ellipse(96, 98, 88, 66), FAT),
        (_Ellipse(96, 98, 82, 60), MUSCLE),
        (_Ellipse(96, 97, 75, 52), FAT * 0.45),
        (_Ellipse(51, 95, 29, 42, 8), LUNG),
        (_Ellipse(144, 98, 26, 40, -8), LUNG),
        (_Ellipse(96, 137, 13, 10), BONE),
        (_Ellipse(96, 151, 5, 4), BLOOD * 0.75),
        (_Ellipse(76, 153, 17, 5, 12), MUSCLE * 1.1),
        (_Ellipse(116, 153, 17, 5, -12), MUSCLE * 1.1),
        (_Ellipse(119, 131, 7, 7), BLOOD * 0.95),
        (_Ellipse(96, 49, 10, 3), BONE),
    ):
        _paint(image, shape.mask(), value)
    if depth > 0.4:
        liver = _Ellipse(54, 112, 28 * depth + 4, 24 * depth + 4, -15).mask()
        _paint(image, liver, LIVER)
        for x, y in ((48, 108), (60, 116), (52, 122)):
            _paint(image, liver * _Ellipse(x, y, 2.2, 1.6).mask(), BLOOD * 0.7)
    return image


def _heart_size(depth: float) -> float:
    return 1.0 - 0.38 * depth


def _left_ventricle(depth: float, contraction: float) -> tuple[_Ellipse, _Ellipse]:
    """Its cavity, papillary muscles included, and its outer border."""
    size = _heart_size(depth)
    x, y = 114.0 + 4.0 * depth - 1.5 * contraction, 92.0 + 3.0 * depth
    outer, inner = size * (27.0 - 1.5 * contraction), size * (18.5 - 7.0 * contraction)
    return _Ellipse(x, y, inner, inner * 0.96), _Ellipse(x, y, outer, outer * 0.97)


def _paint_heart(image: Image, depth: float, contraction: float) -> None:
    size, twist = _heart_size(depth), 12.0 * contraction
    blood, muscle = _left_ventricle(depth, contraction)
    x, y, inner = blood.x, blood.y, blood.a
    sac = _Ellipse(x - 11 * size, y - 2, 43 * size, 34 * size, 12).mask()
    _paint(image, sac, FAT * 0.85)

    right = size * (1.0 - 0.22 * contraction)
    _paint(image, _Ellipse(x - 21 * size, y - 5 * size, 25.5 * size, 23 * size, 12).mask(), MYOCARDIUM)
    _paint(image, _Ellipse(x - 20 * size, y - 5 * size, 22.5 * right, 19.5 * right, 12).mask(), BLOOD)

    _paint(image, muscle.mask(), MYOCARDIUM)
    cavity = blood.mask()
    _paint(image, cavity, BLOOD)
    for angle in (55.0, 165.0):
        turned = math.radians(angle + twist)
        px, py = x + 0.66 * inner * math.cos(turned), y + 0.66 * inner * math.sin(turned)
        _paint(image, cavity * _Ellipse(px, py, 3.2 * size, 2.6 * size, angle).mask(), MYOCARDIUM * 1.1)


def _add_inflow(image: Image, contraction: float, random: np.random.RandomState) -> None:
    """Fresh blood in the aorta: a few pixels far brighter than anything else, most of all in systole."""
    core = _Ellipse(119, 131, 2.0, 2.0).mask()
    image += core * (800.0 + 1500.0 * contraction + 300.0 * random.random_sample((SIZE, SIZE)))


def _data_set(level: int, phase: int, slices: int, phases: int) -> Dataset:
    pixels = stored_values(level, phase, slices, phases)
    low, high = int(pixels.min()), int(pixels.max())
    normal = np.cross(ROW_DIRECTION, COLUMN_DIRECTION)
    position = np.array(FIRST_POSITION_MM) + level * SLICE_DISTANCE_MM * normal
    number = level * phases + phase + 1

    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    ds.SOPClassUID = MRImageStorage
    ds.SOPInstanceUID = _uid("image", level, phase, slices, phases)
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20030110"
    ds.StudyTime = "101500"
    ds.SeriesTime = "102200"
    ds.AcquisitionTime = ds.ContentTime = f"1022{level * 12:02d}"
    ds.AccessionNumber = ""
    ds.Modality = "MR"
    ds.Manufacturer = "dicomfs phantom"
    ds.InstitutionName = "Demo Hospital"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = "Cardiac MR"
    ds.SeriesDescription = "FIESTA SAX"
    ds.PatientName = "Demo^Cine"
    ds.PatientID = "DEMO-0001"
    ds.PatientBirthDate = "19600401"
    ds.PatientSex = "O"
    ds.ScanningSequence = "GR"
    ds.SequenceVariant = ["SS", "SK"]
    ds.ScanOptions = ["FAST_GEMS", "SEQ_GEMS"]
    ds.MRAcquisitionType = "2D"
    ds.SliceThickness = "8"
    ds.RepetitionTime = "3.2"
    ds.EchoTime = "1.4"
    ds.NumberOfAverages = "1"
    ds.EchoNumbers = "1"
    ds.MagneticFieldStrength = "1.5"
    ds.SpacingBetweenSlices = f"{SLICE_DISTANCE_MM:g}"
    ds.EchoTrainLength = "1"
    ds.TriggerTime = f"{RR_INTERVAL_MS * phase / phases:g}"
    ds.NominalInterval = f"{RR_INTERVAL_MS:g}"
    ds.HeartRate = f"{60_000 / RR_INTERVAL_MS:.0f}"
    ds.CardiacNumberOfImages = str(phases)
    ds.FlipAngle = "45"
    ds.PatientPosition = "HFS"
    ds.StudyInstanceUID = _uid("study")
    ds.SeriesInstanceUID = _uid("series", slices, phases)
    ds.StudyID = "1"
    ds.SeriesNumber = "4"
    ds.AcquisitionNumber = str(level + 1)
    ds.InstanceNumber = str(number)
    ds.ImagePositionPatient = [f"{value:.4f}" for value in position]
    ds.ImageOrientationPatient = [f"{value:.6f}" for value in (*ROW_DIRECTION, *COLUMN_DIRECTION)]
    ds.FrameOfReferenceUID = _uid("frame of reference")
    ds.PositionReferenceIndicator = ""
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows = ds.Columns = SIZE
    ds.PixelSpacing = [f"{SPACING_MM:g}", f"{SPACING_MM:g}"]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.SmallestImagePixelValue, ds.LargestImagePixelValue = low, high
    ds.WindowCenter = f"{(low + high) / 2:g}"
    ds.WindowWidth = str(high - low)
    ds.PixelData = pixels.astype("<u2").tobytes()

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta = meta
    return ds


def _uid(*what: object) -> str:
    return generate_uid(entropy_srcs=["dicomfs phantom", *map(str, what)])
