"""Small fixed images whose rendered bytes stand for all others: has a library update changed anything?

Two synthetic pictures try the encoders; three compressed 16 x 16 images try those decoders whose
arithmetic the standards leave open (inverse DCT, chroma upsampling, irreversible wavelet), and with
them the grey chain. Called by `render.probe_digest`.
"""

from base64 import b85decode
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, UID, JPEGBaseline8Bit, JPEGExtended12Bit, SecondaryCaptureImageStorage

_SIDE = 64
_SAMPLE_SIDE = 16
_INSTANCE_UID = "1.2.826.0.1.3680043.8.498.1"

_JPEG_BASELINE = b85decode(
    "|JeWF01!$>Nk#wx0RR9200961|JwjV015{O2nPlV2nYxZ3JMDj7!VE(4GtX@77-XDA0;FrA0i<pD>pADDKse|A}~QQG&wsyK"
    "0YNbL`g$DNH;w`JOA4NLjej43l0qq91sv3J18P3J3Bi&J3Bi&J3Bi&J3Bi&J3Bi&J3Bi&J3Bi&J3Bi&J3Bi&J3Bi&J3Bi&J3"
    "Bi&J3Ift01*fP5C9MZ0U`hb5di}c0sq7R6#xMN000000000000000000FB|HJ?y5C8!I2L%BD0000000000009yJ1O*WxL6I"
    "_nvBB_h|HJ?l0RaI3000000000000000009F3!~h%-009F90000000000000001pomAAu&PG@c-HX3<CiG0ucid06zeWa)V7"
    "F0+#EXv(9jPq~d<D*`9NQ&Z#(`tafLdpxQzQ&biA(l2~W$q#<infB)G"
)
_JPEG_EXTENDED = b85decode(
    "|JeWF01!$>Nk#wx0RR9200961|JwjV00smF1_cBL1_cHO2L=cV5DE$j2?`Vr4-60&6c`v66c!d59VH(c8zUSR79cDjBPJ&)D"
    "k&KsEif%8FeNA{DF49#3k(1d01yEI5di<h02TlN0RaF200000000000000A01W@c04ERt0RjXB1_J;9000000000J5)}y%7G"
    "VMhBS8ohBql;ba)FZn+5iXv0RR9$0L?|ienwLKuS(?MFA=pP^kS08PSVp~d^f@xm*snT$--WdwIk~hic29oOHP44MpE?mO61"
    "@_5w#*;BNUcGc9xo@fjl9pdV9B=oCoO}QYCCgDJ+ETEkFO+"
)
_JPEG_2000 = b85decode(
    "|4;u>051Rl0000G0000G00000000000000G0000G000000000000RdB0S5sA2LS>9QUDA9000311Ox;C0RLP79YSv)ZvbxqZ"
    "s2E7XHaKoPz6v0P)AqOSJPKw|6~9q00BdCWnpw>WFTUBAWv{*Zc0!^M<8}(a&u{KZXhx)H7+#&kN^q*00000CjbHelYoGL!}"
    "S6H07s$vfdBwUfPjF2fPjF2fPnwm"
)
_SAMPLES = (
    # transfer syntax, photometric interpretation, bits stored, codestream
    (JPEGBaseline8Bit, "YBR_FULL_422", 8, _JPEG_BASELINE),
    (JPEGExtended12Bit, "MONOCHROME2", 12, _JPEG_EXTENDED),
    (JPEG2000, "YBR_ICT", 8, _JPEG_2000),
)


def pictures() -> Iterator[NDArray[np.uint8]]:
    """A grey picture, shape (64, 64), and an RGB one, shape (64, 64, 3): ramps, edges and texture."""
    y, x = np.mgrid[0:_SIDE, 0:_SIDE]
    grey = (4 * x + (x * y) % 23 + 90 * ((x // 16 + y // 16) % 2)) % 256
    yield grey.astype(np.uint8)
    yield np.stack([grey, 4 * y, (x ^ y) * 4], axis=-1).astype(np.uint8)


def files() -> Iterator[tuple[str, bytes]]:
    """Name of the compression and complete DICOM file of each sample."""
    for syntax, photometric, bits, codestream in _SAMPLES:
        yield syntax.name, _file(syntax, photometric, bits, codestream)


def _file(syntax: UID, photometric: str, bits: int, codestream: bytes) -> bytes:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID = SecondaryCaptureImageStorage, _INSTANCE_UID
    ds.Modality = "OT"
    ds.Rows = ds.Columns = _SAMPLE_SIDE
    ds.SamplesPerPixel = 1 if photometric == "MONOCHROME2" else 3
    ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = photometric
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = (
        8 if bits == 8 else 16,
        bits,
        bits - 1,
        0,
    )
    ds.PixelData = encapsulate([codestream])
    file = BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()
