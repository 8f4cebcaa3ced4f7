"""The schema of `index.sqlite3`, table by table and column by column.

Ids are receipt sequence numbers: an original's row id is its sequence; a patient, exam, series or
instance has the id of the original that created it. Statements are in `queries.py` (reading) and
`writer.py`.
"""

from typing import Final

from sqlalchemy import (
    Column,
    Connection,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    event,
)
from sqlalchemy import Index as TableIndex

SCHEMA_VERSION: Final = 5
PICTURES: Final = 1
PDF: Final = 2
"""Bits of the columns `shows`."""

metadata = MetaData()

about = Table(
    "about",
    metadata,
    Column("key", Text, primary_key=True, comment="schema_version, store_id, created"),
    Column("value", Text, nullable=False),
)

counter = Table(
    "counter",
    metadata,
    Column("last_sequence", Integer, nullable=False, comment="highest receipt sequence ever given; one row"),
)

patients = Table(
    "patients",
    metadata,
    Column("id", Integer, primary_key=True, comment="sequence of the original that created the patient"),
    Column("folder", Text, nullable=False, comment="name component: what people read"),
    Column("suffix", Text, nullable=False, comment="tells namesakes apart; empty for the first"),
    Column("folder_key", Text, nullable=False, unique=True, comment="folded name with suffix"),
    Column("id_folder", Text, nullable=False, comment="name component: the Patient ID, or empty"),
    Column("id_suffix", Text, nullable=False, comment="tells equal Patient IDs apart; empty for the first"),
    Column("id_key", Text, nullable=False, unique=True, comment="folded Patient ID with suffix (`id_label`)"),
    Column(
        "updated", Float, nullable=False, comment="receipt of the latest original, seconds since the epoch"
    ),
)

identities = Table(
    "identities",
    metadata,
    Column("id", Integer, primary_key=True, comment="sequence of the original that bore it first"),
    Column("patient", ForeignKey("patients.id", ondelete="CASCADE"), nullable=False),
    Column("issuer", Text, nullable=False, comment="normalised Issuer of Patient ID, or empty"),
    Column("patient_id", Text, nullable=False, comment="normalised Patient ID, or empty"),
    Column("name", Text, nullable=False, comment="keys of the groups of the name, joined by =, or empty"),
    Column("birth_date", Text, nullable=False, comment="YYYYMMDD or empty"),
    Column("sex", Text, nullable=False, comment="M, F or empty"),
    Column("study", Text, nullable=False, comment="Study Instance UID if only that identifies; else empty"),
    UniqueConstraint("patient_id", "birth_date", "name", "issuer", "sex", "study"),
    TableIndex("identities_of_patient", "patient"),
)

exams = Table(
    "exams",
    metadata,
    Column("id", Integer, primary_key=True, comment="sequence of the original that created the exam"),
    Column("patient", ForeignKey("patients.id"), nullable=False),
    Column("study_uid", Text, nullable=False, comment="Study Instance UID, derived when missing"),
    Column("date", Text, nullable=False, comment="YYYYMMDD of the exam, or empty"),
    Column("folder", Text, nullable=False, comment="name component: the date"),
    Column("suffix", Text, nullable=False, comment="time or hash of a further study of that day; else empty"),
    Column("folder_key", Text, nullable=False, comment="folded name with suffix"),
    Column("day", Text, nullable=False, comment="YYYYMMDD that `since=` is measured on (`day_of_exam`)"),
    Column(
        "updated", Float, nullable=False, comment="receipt of the latest original, seconds since the epoch"
    ),
    UniqueConstraint("patient", "folder_key"),
    UniqueConstraint("study_uid", "patient", "date"),
    TableIndex("exams_of_patient", "patient", "id"),
    TableIndex("exams_by_day", "day", "id"),
)

days = Table(
    "days",
    metadata,
    Column("date", Text, primary_key=True, comment="`exams.date`: a folder where exams are listed by date"),
    Column(
        "updated", Float, nullable=False, comment="receipt of the latest original, seconds since the epoch"
    ),
    sqlite_with_rowid=False,
)

# What folders hold, so that none is empty in a view of some modalities, of pictures or of PDF files, and
# none has to be searched to know. For each instance: its modality and any (`selection.ANY`), by whatever
# it can be shown as and as stored file (0). The keys begin with what a view asks for.

patient_contents = Table(
    "patient_contents",
    metadata,
    Column("modality", Text, primary_key=True, comment="`modality_key` of the series, or empty: any"),
    Column("shows", Integer, primary_key=True, comment="0 stored, 1 pictures, 2 pdf"),
    Column("patient", Integer, primary_key=True, comment="patients.id"),
    Column("latest", Text, nullable=False, comment="highest `exams.day` of such"),
    Column("risen", Integer, nullable=False, comment="sequence of the original that brought `latest`"),
    sqlite_with_rowid=False,
)

exam_contents = Table(
    "exam_contents",
    metadata,
    Column("modality", Text, primary_key=True, comment="`modality_key` of the series, or empty: any"),
    Column("shows", Integer, primary_key=True, comment="0 stored, 1 pictures, 2 pdf"),
    Column("date", Text, primary_key=True, comment="copy of `exams.date`"),
    Column("exam", Integer, primary_key=True, comment="exams.id"),
    Column("day", Text, nullable=False, comment="copy of `exams.day`"),
    Column("since", Integer, nullable=False, comment="sequence of the first original of such"),
    TableIndex("exam_contents_by_day", "modality", "shows", "date", "day"),
    sqlite_with_rowid=False,
)

series = Table(
    "series",
    metadata,
    Column("id", Integer, primary_key=True, comment="sequence of the original that created the series"),
    Column("exam", ForeignKey("exams.id"), nullable=False),
    Column("series_uid", Text, nullable=False, comment="Series Instance UID, derived when missing"),
    Column("modality", Text, nullable=False, comment="Modality, as sent"),
    Column("label", Text, nullable=False, comment="name component: the series' name, suffix included"),
    Column("label_key", Text, nullable=False, comment="folded label"),
    Column("name_key", Text, nullable=False, comment="folded label without suffix"),
    Column("number", Integer, nullable=False, comment="Series Number; 0 when missing"),
    UniqueConstraint("exam", "series_uid", "name_key", "number"),
    UniqueConstraint("exam", "label_key", "number"),
)

instances = Table(
    "instances",
    metadata,
    Column("id", Integer, primary_key=True, comment="sequence of the original that created the instance"),
    Column("series", ForeignKey("series.id"), nullable=False),
    Column("exam", ForeignKey("exams.id"), nullable=False, comment="copy of the series' exam, for listings"),
    Column("sop_uid", Text, nullable=False, comment="SOP Instance UID"),
    Column("sop_class_uid", Text, nullable=False, comment="SOP Class UID of the shown original"),
    Column("number", Integer, nullable=False, comment="Instance Number; 0 when missing"),
    Column(
        "suffix",
        Text,
        nullable=False,
        comment="hash of the SOP Instance UID where the number is taken; else empty",
    ),
    Column("frames", Integer, nullable=False, comment="Number of Frames, at least 1"),
    Column("rows", Integer, nullable=False, comment="Rows; 0 when missing"),
    Column("columns", Integer, nullable=False, comment="Columns; 0 when missing"),
    Column("shows", Integer, nullable=False, comment="what it can be shown as: 1 pictures, 2 pdf; a sum"),
    Column(
        "pool", Text, nullable=False, comment="images of one grey scale share it: SERIES:KEY; empty: alone"
    ),
    Column(
        "modified", Float, nullable=False, comment="acquisition, else receipt: mtime, seconds since the epoch"
    ),
    Column("shown", Integer, nullable=False, comment="id of the original that is shown: its files' inodes"),
    UniqueConstraint("series", "number", "suffix"),
    TableIndex("instances_of_exam", "exam", "id"),
    TableIndex("instances_by_sop_uid", "sop_uid"),
)
TableIndex("instances_of_pool", instances.c.pool, instances.c.shown, sqlite_where=instances.c.pool != "")

originals = Table(
    "originals",
    metadata,
    Column("id", Integer, primary_key=True, comment="receipt sequence number"),
    Column("instance", ForeignKey("instances.id"), nullable=False),
    Column("hash", LargeBinary(32), nullable=False, unique=True, comment="SHA-256, names the archived file"),
    Column("size", Integer, nullable=False, comment="bytes of the data set, without file meta information"),
    Column("transfer_syntax", Text, nullable=False, comment="Transfer Syntax UID"),
    Column("received", Float, nullable=False, comment="seconds since the epoch"),
    Column("source_ae", Text, nullable=False, comment="AE title of the sender, or empty"),
    Column("duplicates", Text, nullable=False, comment="policy in force at its receipt (`Duplicates`)"),
    Column(
        "conflict",
        Integer,
        nullable=False,
        comment="1: bears another patient's identity than an earlier original of the same UIDs",
    ),
    Column("pixel_offset", Integer, comment="native pixel data: first byte, from the start of the data set"),
    Column("pixel_length", Integer, comment="native pixel data: bytes"),
    Column("outline", LargeBinary, comment="plain images: what a render needs of the header (`outline.py`)"),
    TableIndex("originals_of_instance", "instance"),
)
TableIndex("conflicts", originals.c.id, sqlite_where=originals.c.conflict == 1)

retired = Table(
    "retired",
    metadata,
    Column("path", Text, primary_key=True, comment="folded name of what was removed, below its folders'"),
    Column("owner", Text, nullable=False, comment="who bore it, and alone may have it again"),
    sqlite_with_rowid=False,
)

forgotten = Table(
    "forgotten",
    metadata,
    Column("name", Text, primary_key=True, comment="folder in `forgotten/` that got the originals"),
    Column("removed", Float, nullable=False, comment="seconds since the epoch"),
    Column("originals", Integer, nullable=False, comment="how many"),
)

removals = Table(
    "removals",
    metadata,
    Column("id", Integer, primary_key=True, comment="order of removal; never given twice"),
    Column("removed", Float, nullable=False, comment="seconds since the epoch; kept for some days"),
    Column("patient", Text, nullable=False, comment="its row as it was, JSON"),
    Column("exam", Text, nullable=False, comment="its row as it was, JSON"),
    Column("image", Text, nullable=False, comment="what was read of it, JSON; empty: about its folders"),
    Column(
        "held",
        Text,
        nullable=False,
        comment="what its exam held before (`index.Held`), JSON",
    ),
    sqlite_autoincrement=True,
)

_TRIGGERS: Final = (
    """
    CREATE TRIGGER retire_patient BEFORE DELETE ON patients BEGIN
        INSERT OR REPLACE INTO retired
        SELECT label, coalesce(min(
            issuer || char(10) || patient_id || char(10) || name || char(10) || birth_date || char(10)
            || sex || char(10) || study), '')
        FROM (SELECT OLD.folder_key AS label UNION ALL SELECT '/' || OLD.id_key)
        LEFT JOIN identities ON id = (SELECT min(id) FROM identities WHERE patient = OLD.id)
        GROUP BY label;
    END
    """,
    """
    CREATE TRIGGER retire_exam BEFORE DELETE ON exams BEGIN
        INSERT OR REPLACE INTO retired
        SELECT folder_key || '/' || OLD.folder_key, OLD.study_uid || char(10) || OLD.date
        FROM patients WHERE id = OLD.patient;
    END
    """,
    """
    CREATE TRIGGER retire_series BEFORE DELETE ON series BEGIN
        INSERT OR REPLACE INTO retired
        SELECT patients.folder_key || '/' || exams.folder_key || '/' || OLD.label_key || '_' || OLD.number,
            OLD.series_uid || char(10) || OLD.name_key
        FROM exams JOIN patients ON patients.id = exams.patient WHERE exams.id = OLD.exam;
    END
    """,
    """
    CREATE TRIGGER retire_image BEFORE DELETE ON instances BEGIN
        INSERT OR REPLACE INTO retired
        SELECT patients.folder_key || '/' || exams.folder_key || '/' || series.label_key || '_'
            || series.number || '_' || OLD.number || ' ' || OLD.suffix, OLD.sop_uid
        FROM series JOIN exams ON exams.id = series.exam JOIN patients ON patients.id = exams.patient
        WHERE series.id = OLD.series;
    END
    """,
)
"""Whoever deletes a row that bears a name, the name goes into `retired`."""


@event.listens_for(metadata, "after_create")
def _make_triggers(_target: MetaData, connection: Connection, **_options: object) -> None:
    for trigger in _TRIGGERS:
        connection.exec_driver_sql(trigger)
