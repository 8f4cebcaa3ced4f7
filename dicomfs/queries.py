"""The SELECTs of the index, built once.

Building a statement costs more than running it. What the kernel or a sender waits for is a `Statement`, which
goes to SQLite's driver; no such one counts, sorts or scans (`tests/unit/test_query_plans.py`). Used by
`index.py` and `removal.py`.
"""

from sqlalchemy import and_, bindparam, func, literal, literal_column, select, tuple_

from dicomfs.rows import NameRow
from dicomfs.schema import (
    days,
    exam_contents,
    exams,
    instances,
    originals,
    patient_contents,
    patients,
    removals,
    series,
)
from dicomfs.statement import Statement

# Patients and exams. `patient_contents` and `exam_contents` are asked for one modality at a time: their keys
# begin with it, so that neither a page nor a name is searched for.
_PATIENT_NAME = (patients.c.folder, patients.c.suffix, patients.c.id_folder, patients.c.id_suffix)
PATIENT = select(patients.c.id, *_PATIENT_NAME, patients.c.updated)
_PATIENT_HOLDS = and_(
    patient_contents.c.modality == bindparam("modality"), patient_contents.c.shows == bindparam("shows")
)
_EXAM_HOLDS = and_(
    exam_contents.c.modality == bindparam("modality"), exam_contents.c.shows == bindparam("shows")
)
_OF_EXAM = and_(_EXAM_HOLDS, exam_contents.c.date == exams.c.date, exam_contents.c.exam == exams.c.id)
_IS_SHOWN = and_(exam_contents.c.day >= bindparam("first_day"), exam_contents.c.since <= bindparam("through"))
PATIENT_PAGE = Statement(
    PATIENT.add_columns(patient_contents.c.risen)
    .join(patient_contents, patient_contents.c.patient == patients.c.id)
    .where(
        _PATIENT_HOLDS,
        patient_contents.c.latest >= bindparam("first_day"),
        patient_contents.c.patient > bindparam("after"),
    )
    .order_by(patient_contents.c.patient)
    .limit(bindparam("most"))
)
PATIENT_BY_KEY = Statement(PATIENT.where(patients.c.folder_key == bindparam("key")))
PATIENT_BY_ID_KEY = Statement(PATIENT.where(patients.c.id_key == bindparam("key")))
PATIENT_BY_ID = Statement(PATIENT.where(patients.c.id == bindparam("id")))
PATIENT_HOLDS = Statement(
    select(patient_contents.c.latest, patient_contents.c.risen).where(
        _PATIENT_HOLDS, patient_contents.c.patient == bindparam("patient")
    )
)
PATIENT_SHOWS = Statement(
    select(exams.c.id)
    .join(exam_contents, _OF_EXAM)
    .where(exams.c.patient == bindparam("patient"), _IS_SHOWN)
    .limit(1)
)
EXAM = select(
    exams.c.id,
    exams.c.patient,
    exams.c.date,
    exams.c.folder.label("exam_folder"),
    exams.c.suffix.label("exam_suffix"),
    exams.c.updated,
    *_PATIENT_NAME,
).join(patients, patients.c.id == exams.c.patient)
EXAM_HELD = EXAM.join(exam_contents, _OF_EXAM).where(_IS_SHOWN)
EXAM_PAGE = Statement(
    EXAM_HELD.where(exams.c.patient == bindparam("patient"), exams.c.id > bindparam("after"))
    .order_by(exams.c.id)
    .limit(bindparam("most"))
)
EXAM_BY_KEY = Statement(
    EXAM_HELD.where(exams.c.patient == bindparam("patient"), exams.c.folder_key == bindparam("key"))
)
EXAM_BY_ID = Statement(EXAM.where(exams.c.id == bindparam("id")))
EXAMS_OF_DAY = Statement(
    EXAM_HELD.where(exam_contents.c.date == bindparam("date"), exam_contents.c.exam > bindparam("after"))
    .order_by(exam_contents.c.exam)
    .limit(bindparam("most"))
)
# A step over all exams of a day at once, so that a listing of days costs what it has days.
NEXT_DAY = Statement(
    select(exam_contents.c.date)
    .where(_EXAM_HOLDS, exam_contents.c.date >= bindparam("first"), _IS_SHOWN)
    .order_by(exam_contents.c.date)
    .limit(1)
)
IN_DAY = Statement(
    select(exam_contents.c.exam)
    .where(_EXAM_HOLDS, exam_contents.c.date == bindparam("date"), _IS_SHOWN)
    .limit(1)
)
EXAM_HOLDS = Statement(
    select(exam_contents.c.day, exam_contents.c.since).where(
        _EXAM_HOLDS,
        exam_contents.c.date == bindparam("date"),
        exam_contents.c.exam == bindparam("exam"),
    )
)
DAY = Statement(select(days.c.date, days.c.updated).where(days.c.date == bindparam("date")))
EXAMS_BETWEEN = (
    EXAM.add_columns(exams.c.day)
    .where(
        tuple_(exams.c.day, exams.c.id) > tuple_(bindparam("day"), bindparam("after")),
        exams.c.day < bindparam("before"),
    )
    .order_by(exams.c.day, exams.c.id)
    .limit(bindparam("most"))
)

# Instances
_NAME = (
    instances.c.id,
    series.c.label,
    series.c.number.label("series_number"),
    instances.c.number,
    instances.c.suffix,
    instances.c.frames,
    instances.c.shows,
    series.c.modality,
    instances.c.pool,
    instances.c.modified,
    instances.c.shown.label("original"),
)
NAME = (
    select(*_NAME)
    .join(series, series.c.id == instances.c.series)
    .where(
        instances.c.exam == bindparam("exam"),
        instances.c.id.between(bindparam("first"), bindparam("last")),
    )
    .limit(bindparam("most"))
)
NAME_UNSIZED = NAME.add_columns(literal(0).label("size"))
NAME_SIZED = NAME.add_columns(originals.c.size).join(originals, originals.c.id == instances.c.shown)
NAME_PAGE = {
    (is_sized, is_back): Statement(
        name.order_by(instances.c.id.desc() if is_back else instances.c.id.asc()), NameRow
    )
    for is_sized, name in ((False, NAME_UNSIZED), (True, NAME_SIZED))
    for is_back in (False, True)
}
IMAGE = (
    select(
        *_NAME,
        originals.c.size,
        instances.c.exam,
        exams.c.patient,
        exams.c.day,
        originals.c.hash,
        originals.c.pixel_offset,
        originals.c.outline,
    )
    .join(series, series.c.id == instances.c.series)
    .join(exams, exams.c.id == instances.c.exam)
    .join(originals, originals.c.id == instances.c.shown)
)
INSTANCES_BEFORE = (
    select(instances.c.id)
    .where(instances.c.id < bindparam("before"))
    .order_by(instances.c.id.desc())
    .limit(bindparam("most"))
)
IMAGE_BY_NAME = Statement(
    IMAGE.where(
        series.c.exam == bindparam("exam"),
        series.c.label_key == bindparam("label_key"),
        series.c.number == bindparam("series_number"),
        instances.c.number == bindparam("number"),
        instances.c.suffix == bindparam("suffix"),
    )
)
IMAGE_BY_ID = IMAGE.where(instances.c.id == bindparam("id"))
# From the original to its instance, which has one that it shows: there is no way back without a search.
IMAGE_SHOWN = Statement(
    IMAGE.where(
        instances.c.id
        == select(originals.c.instance).where(originals.c.id == bindparam("original")).scalar_subquery(),
        instances.c.shown == bindparam("original"),
    )
)
# In the words of the partial index: of a parameter SQLite cannot know that it is not empty.
IN_POOL = and_(instances.c.pool == bindparam("pool"), instances.c.pool != literal_column("''"))
POOL_MEMBERS = IMAGE.where(IN_POOL).order_by(instances.c.shown)
POOL_THROUGH = select(func.max(instances.c.shown)).where(IN_POOL)
POOL_SPAN = select(func.min(instances.c.id).label("first"), func.max(instances.c.id).label("last")).where(
    IN_POOL
)

# Originals
ARRIVALS = (
    select(originals.c.id, originals.c.instance, instances.c.pool, instances.c.shown)
    .join(instances, instances.c.id == originals.c.instance)
    .where(originals.c.id > bindparam("after"))
    .order_by(originals.c.id)
    .limit(bindparam("most"))
)
REMOVALS = (
    select(removals)
    .where(removals.c.id > bindparam("after"))
    .order_by(removals.c.id)
    .limit(bindparam("most"))
)
LAST_REMOVAL = select(func.max(removals.c.id))
ORIGINALS_OF = (
    select(
        originals.c.id.label("sequence"),
        originals.c.hash,
        originals.c.transfer_syntax,
        originals.c.received,
        originals.c.source_ae,
        instances.c.sop_uid,
        instances.c.shown,
    )
    .join(instances, instances.c.id == originals.c.instance)
    .where(originals.c.instance == bindparam("id"))
    .order_by(originals.c.id)
)
KEPT_UNDER = (
    select(originals.c.id.label("sequence"), originals.c.hash, originals.c.size, originals.c.transfer_syntax)
    .join(instances, instances.c.id == originals.c.instance)
    .where(instances.c.sop_uid == bindparam("sop_uid"))
)
RECORDED = (
    select(
        originals.c.id.label("sequence"),
        originals.c.hash,
        originals.c.size,
        originals.c.transfer_syntax,
        originals.c.received,
        originals.c.source_ae,
        originals.c.duplicates,
        instances.c.sop_uid,
    )
    # Outer: the row of an original whose instance is lost must not hide its file.
    .outerjoin(instances, instances.c.id == originals.c.instance)
    .where(originals.c.hash > bindparam("after"), originals.c.hash <= bindparam("last"))
    .order_by(originals.c.hash)
    .limit(bindparam("most"))
)
NOT_SHOWN = (
    select(instances.c.id)
    .outerjoin(originals, originals.c.id == instances.c.shown)
    .where(originals.c.id.is_(None))
    .limit(bindparam("most"))
)
HIGHEST = select(func.max(originals.c.id))
LAST_ORIGINAL = Statement(
    select(originals.c.received).where(originals.c.id == select(func.max(originals.c.id)).scalar_subquery())
)
