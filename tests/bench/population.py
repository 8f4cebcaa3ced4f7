"""An index as large as asked for, of the shape that a hospital's has, made in minutes.

    python -m tests.bench.population STORE INSTANCES

The first image of each series goes the way of every image (`Writer.add`: names, suffixes, what folders
hold); the rest of the series are rows like it, by the hundred. No original is written: whoever opens a
picture gets an error, and names, sizes of stored files and listings are those of a real store. The same
number gives the same index, but for the id of the store.
"""

import random
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    EnhancedXAImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    UltrasoundMultiFrameImageStorage,
)
from sqlalchemy import Table

from dicomfs.index import INDEX_NAME, Index
from dicomfs.model import Header, Receipt
from dicomfs.schema import instances, originals
from dicomfs.writer import Writer

FIRST_RECEIPT: Final = 1_400_000_000.0
SECONDS_BETWEEN: Final = 20.0
"""Between two images, on average: a large hospital's day has some thousand."""
LONG_SERIES: Final = 1000
_OUTLINE: Final = bytes(82)
"""As long as that of a real image is on average; nobody renders these."""
_FAMILIES: Final = (
    *("Müller", "Schmidt", "Weiß", "Jørgensen", "Østergård", "Novák", "Dvořák", "O'Brien", "García", "López"),
    *("Nguyễn", "Трифонова", "Иванов", "Παπαδόπουλος", "山田", "李", "김", "Yılmaz", "İnan", "Doe", "Smith"),
    *("Brown", "Jones", "van der Berg", "de la Cruz", "Ó Súilleabháin", "Kowalska", "Horváth", "Silva"),
)
_GIVEN: Final = (
    *("Anna", "Bernd", "Carla", "David", "Eva", "Frank", "Gül", "Hanna", "Igor", "Jane", "Karl", "Lena"),
    *("Max", "Nora", "Otto", "Pia", "Rosa", "Sofie", "Tomáš", "Ursula", "Viktor", "太郎", "伟", "Ольга"),
)


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of exam."""

    share: int
    """Percent of all exams."""
    modality: str
    sop_class: str
    names: tuple[str, ...]
    series: tuple[int, int]
    """Least and most series."""
    images: tuple[int, ...]
    """Images of a series; one of these."""
    frames: tuple[int, ...] = (1,)
    pools: int = 0
    """Slice positions of a series that share a window each; 0: every image decides alone."""


_CT_IMAGES: Final = (1, 40, 80, 80, 120, 300, LONG_SERIES)
_KINDS: Final = (
    _Kind(45, "CR", ComputedRadiographyImageStorage, ("Thorax pa", "Thorax lat", "Hand"), (1, 3), (1, 2)),
    _Kind(23, "US", UltrasoundMultiFrameImageStorage, ("Abdomen", "Echo"), (1, 1), (10, 30, 60), (1, 1, 40)),
    _Kind(15, "CT", CTImageStorage, ("Topogram", "Abdomen 5.0", "Lunge 1.0"), (2, 5), _CT_IMAGES),
    _Kind(
        12,
        "MR",
        MRImageStorage,
        ("t2_tse_sag", "FIESTA SAX", "DWI b800"),
        (5, 12),
        (20, 30, 40, 60, 240),
        pools=12,
    ),
    _Kind(5, "XA", EnhancedXAImageStorage, ("Coronary LAO", "Ventricle"), (5, 15), (1,), (20, 60, 100)),
)


@dataclass(frozen=True, slots=True)
class _Series:
    """Headers of one series differ in number and UID alone."""

    first: Header
    images: int
    pools: int


def fill(index: Index, count: int, seed: int = 20240229) -> None:
    """Add `count` instances to an empty index that was opened to be written, fast and not durably."""
    connection = index._connection
    # Nobody else looks, and a broken one is made again.
    for setting in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -4000000"):
        connection.exec_driver_sql(f"PRAGMA {setting}")
        connection.rollback()
    with index.write() as writer:
        sequence = 0
        for series in _series(random.Random(seed)):
            images = min(series.images, count - sequence)
            _add(writer, replace(series, images=images), sequence + 1)
            sequence += images
            if sequence == count:
                break
        writer._connection.execute("UPDATE counter SET last_sequence = ?", (sequence,))
    for setting in ("journal_mode = WAL", "synchronous = FULL", "cache_size = -32768"):
        connection.exec_driver_sql(f"PRAGMA {setting}")
        connection.rollback()


def _add(writer: Writer, series: _Series, first: int) -> None:
    received = FIRST_RECEIPT + SECONDS_BETWEEN * first
    header = series.first
    writer.add(header, Receipt(ExplicitVRLittleEndian, received, "CT1"), first, _digest(first), 525_000)
    writer._recollection.bound()
    rest = range(first + 1, first + series.images)
    if not rest:
        return
    connection = writer._connection
    series_id, exam, modified = connection.execute(
        "SELECT series, exam, modified FROM instances WHERE id = ?", (first,)
    ).fetchone()
    stem = header.sop_instance_uid.rpartition(".")[0]
    _insert(
        connection,
        instances,
        [
            {
                "id": n,
                "series": series_id,
                "exam": exam,
                "sop_uid": f"{stem}.{n - first + 1}",
                "sop_class_uid": header.sop_class_uid,
                "number": n - first + 1,
                "suffix": "",
                "frames": header.frames,
                "rows": header.rows,
                "columns": header.columns,
                "shows": 1,
                "pool": f"{series_id}:{_pool((n - first) % series.pools)}" if series.pools else "",
                "modified": modified + n - first,
                "shown": n,
            }
            for n in rest
        ],
    )
    _insert(
        connection,
        originals,
        [
            {
                "id": n,
                "instance": n,
                "hash": _digest(n),
                "size": 525_000,
                "source_ae": "CT1",
                "transfer_syntax": ExplicitVRLittleEndian,
                "duplicates": "keep-first",
                "conflict": 0,
                "received": FIRST_RECEIPT + SECONDS_BETWEEN * n,
                "pixel_offset": 1800,
                "pixel_length": 524_288,
                "outline": _OUTLINE,
            }
            for n in rest
        ],
    )


def _insert(connection: sqlite3.Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    names = [column.name for column in table.columns]
    columns = ", ".join(f'"{name}"' for name in names)
    values = ", ".join(f":{name}" for name in names)
    connection.executemany(f"INSERT INTO {table.name} ({columns}) VALUES ({values})", rows)  # noqa: S608  our own names


def _digest(number: int) -> bytes:
    return sha256(number.to_bytes(8, "big")).digest()


def _pool(place: int) -> str:
    return sha256(f"slice {place}".encode()).hexdigest()[:16]


def _series(rng: random.Random) -> Iterator[_Series]:
    """Series after series, without end: patients with some exams each, who come back after months."""
    known: list[dict[str, Any]] = []
    day = date(2014, 5, 13)
    while True:
        day += timedelta(days=rng.random() < 0.05)
        if not known or rng.random() < 0.6:
            known.append(_patient(rng, len(known)))
            who = known[-1]
        else:
            who = known[-1 - min(int(rng.expovariate(1 / 300)), len(known) - 1)]
        kind = rng.choices(_KINDS, [kind.share for kind in _KINDS])[0]
        study = f"1.2.840.113619.2.{rng.randrange(10**3)}.{rng.randrange(10**9)}.{rng.randrange(10**12)}"
        for number in range(1, rng.randint(*kind.series) + 1):
            yield _Series(
                _header(rng, who, day, kind, study=study, number=number), rng.choice(kind.images), kind.pools
            )


def _patient(rng: random.Random, number: int) -> dict[str, Any]:
    born = date(1930, 1, 1) + timedelta(days=rng.randrange(30_000))
    name = f"{rng.choice(_FAMILIES)}^{rng.choice(_GIVEN)}^{rng.choice(['', '', *_GIVEN])}"
    return {
        "patient_id": f"{4_700_000 + number}",
        "issuer": rng.choice(["", "", "KIS", "HIS"]),
        "patient_name": name,
        "patient_names": (name,),
        "sex": rng.choice("FM"),
        "birth_date": born.isoformat().replace("-", ""),
    }


def _header(
    rng: random.Random, who: dict[str, Any], day: date, kind: _Kind, *, study: str, number: int
) -> Header:
    return Header(
        sop_class_uid=kind.sop_class,
        sop_instance_uid=f"{study}.{number}.1",
        study_uid=study,
        series_uid=f"{study}.{number}",
        derived_uids=(),
        **who,
        study_date=day.isoformat().replace("-", ""),
        study_time=f"{rng.randrange(7, 20):02}{rng.randrange(60):02}00",
        modality=kind.modality,
        series_name=rng.choice(kind.names),
        series_number=number,
        instance_number=1,
        frames=rng.choice(kind.frames),
        rows=512,
        columns=512,
        has_pixels=True,
        pool=_pool(0) if kind.pools else "",
        acquired=None,
        pixel_offset=1800,
        pixel_length=524_288,
        outline=_OUTLINE,
    )


def main() -> None:
    """Make the index of a new store."""
    store, count = Path(sys.argv[1]), int(sys.argv[2])
    make(store, count)


def make(store: Path, count: int) -> None:
    """A new store of so many instances, without originals. It has its name only when it is whole."""
    unfinished = store.with_name(f"{store.name}.unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    for left_over in unfinished.iterdir():
        left_over.unlink()
    index = Index(unfinished / INDEX_NAME, create=True)
    fill(index, count)
    index.close()
    unfinished.rename(store)


if __name__ == "__main__":
    main()
