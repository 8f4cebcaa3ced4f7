"""Who is one patient: every row of the table in ARCHITECTURE.md, and what counts as a spelling."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomfs.identity import (
    Identity,
    Likeness,
    Verdict,
    compare,
    compare_names,
    compare_with_all,
    identity_of,
    name_key,
)
from tests.made import header

DOE, BORN, OTHER_BIRTH = "doe jane", "19700102", "19800808"
SAME, MAYBE, OTHER = Verdict.SAME, Verdict.MAYBE, Verdict.OTHER


def person(
    name: str = DOE, birth: str = BORN, sex: str = "F", *, patient_id: str = "4711", issuer: str = ""
) -> Identity:
    return Identity(issuer, patient_id, name, birth, sex, "")


def both(one: Identity, other: Identity) -> Verdict:
    assert compare(one, other) is compare(other, one)
    return compare(one, other)


# Equal IDs of one issuer. Columns: sex not different, sex different.
NAMES = {
    Likeness.EQUAL: DOE,
    Likeness.ABRIDGED: "doe jane mary",
    Likeness.AKIN: "smith jane",
    Likeness.FOREIGN: "roe max",
    Likeness.UNKNOWN: "",
}
WITH_ID = [
    # name, birth date, verdict, verdict if the sex differs
    (Likeness.EQUAL, BORN, SAME, SAME),
    (Likeness.EQUAL, "", SAME, SAME),
    (Likeness.EQUAL, OTHER_BIRTH, SAME, OTHER),
    (Likeness.ABRIDGED, BORN, SAME, SAME),
    (Likeness.ABRIDGED, "", SAME, SAME),
    (Likeness.ABRIDGED, OTHER_BIRTH, SAME, OTHER),
    (Likeness.AKIN, BORN, SAME, OTHER),  # married; opposite-sex twins
    (Likeness.AKIN, "", OTHER, OTHER),
    (Likeness.AKIN, OTHER_BIRTH, OTHER, OTHER),  # mother and child
    (Likeness.FOREIGN, BORN, OTHER, OTHER),
    (Likeness.FOREIGN, "", OTHER, OTHER),
    (Likeness.FOREIGN, OTHER_BIRTH, OTHER, OTHER),
    (Likeness.UNKNOWN, BORN, SAME, OTHER),
    (Likeness.UNKNOWN, "", MAYBE, OTHER),
    (Likeness.UNKNOWN, OTHER_BIRTH, OTHER, OTHER),
]
WITHOUT_ID = [
    (Likeness.EQUAL, BORN, SAME, OTHER),
    (Likeness.EQUAL, "", MAYBE, OTHER),
    (Likeness.UNKNOWN, BORN, MAYBE, OTHER),
    (Likeness.UNKNOWN, "", MAYBE, OTHER),
    *((likeness, BORN, OTHER, OTHER) for likeness in (Likeness.ABRIDGED, Likeness.AKIN, Likeness.FOREIGN)),
    *((likeness, "", OTHER, OTHER) for likeness in (Likeness.ABRIDGED, Likeness.AKIN, Likeness.FOREIGN)),
    *((likeness, OTHER_BIRTH, OTHER, OTHER) for likeness in Likeness),
]


def test_the_tables_are_complete() -> None:
    for table in (WITH_ID, WITHOUT_ID):
        rows = [(name, birth) for name, birth, *_ in table]
        assert sorted(rows, key=str) == sorted(itertools.product(Likeness, (BORN, "", OTHER_BIRTH)), key=str)
    assert all(compare_names(DOE, name) is likeness for likeness, name in NAMES.items())


@pytest.mark.parametrize(("likeness", "birth", "verdict", "if_sex_differs"), WITH_ID)
def test_with_an_id(likeness: Likeness, birth: str, verdict: Verdict, if_sex_differs: Verdict) -> None:
    other = NAMES[likeness]
    assert both(person(), person(other, birth, "F")) is verdict
    assert both(person(), person(other, birth, "")) is verdict
    assert both(person(), person(other, birth, "M")) is if_sex_differs


@pytest.mark.parametrize(("likeness", "birth", "verdict", "if_sex_differs"), WITHOUT_ID)
def test_without_an_id(likeness: Likeness, birth: str, verdict: Verdict, if_sex_differs: Verdict) -> None:
    one, other = person(patient_id=""), NAMES[likeness]
    assert both(one, person(other, birth, "F", patient_id="")) is verdict
    assert both(one, person(other, birth, "", patient_id="")) is verdict
    assert both(one, person(other, birth, "M", patient_id="")) is if_sex_differs


def test_other_ids_are_other_people_whatever_else_agrees() -> None:
    assert both(person(), person(patient_id="0815")) is OTHER
    assert both(person(), person(patient_id="")) is OTHER
    assert both(person(patient_id="a"), person(patient_id="A")) is OTHER


def test_issuers() -> None:
    assert both(person(issuer="A"), person(issuer="B")) is OTHER
    assert both(person(issuer="A"), person(issuer="A")) is SAME
    # One says nothing: the ID may be another hospital's, so all else must agree.
    assert both(person(issuer="A"), person()) is SAME
    assert both(person(issuer="A"), person("doe jane mary", sex="")) is SAME
    for name, birth, sex in [(DOE, "", "F"), (DOE, BORN, "M"), ("smith jane", BORN, "F"), ("", BORN, "F")]:
        assert both(person(issuer="A"), person(name, birth, sex)) is OTHER


def test_whoever_contradicts_decides() -> None:
    married = person("smith jane")
    assert compare_with_all(person(""), [person(), married]) is SAME
    assert compare_with_all(person("smith ann"), [person(), married]) is OTHER
    assert compare_with_all(person("", ""), [person(), married]) is MAYBE


# Spelling


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("DOE^JOHN", "Doe^John^^^"),
        ("Doe^John", " Doe ^ John "),
        ("Doe^John", "Doe John\0"),
        ("Doe^^John", "doe^john^^Dr^Jr"),  # titles come and go
        ("Doe, John", "Doe^John"),
        ("Müller^Jörg", "MULLER^JORG"),
        ("Müller^Jörg", "Mueller^Joerg"),
        ("Mu\u0308ller^Jo\u0308rg", "MÜLLER^JÖRG"),
        ("Groß^Anna", "GROSS^ANNA"),
        ("Ångström", "Aangstrom"),
        ("Łoś^Øystein", "Los^Oystein"),
        ("Παπαδόπουλος^Νίκος", "ΠΑΠΑΔΟΠΟΥΛΟΣ^ΝΙΚΟΣ"),
        ("Фёдоров^Пётр", "ФЕДОРОВ^ПЕТР"),
        ("ﾔﾏﾀﾞ^ﾀﾛｳ", "やまだ^たろう"),
        ("ＤＯＥ^ＪＯＨＮ", "Doe^John"),
        ("Garcia-Lopez^Ana", "García López^Ana"),
        ("O'Neil^Ann", "O\u2019NEIL^ANN"),
        ("DİNÇ^ILGIN", "Dinç^Ilgın"),
        ("王^小东", "王^小东"),
    ],
)
def test_spellings_are_one_name(one: str, other: str) -> None:
    assert name_key(one) == name_key(other) != ""


@pytest.mark.parametrize(
    ("one", "other", "likeness"),
    [
        ("山田^太郎", "山田太郎", Likeness.EQUAL),
        ("de Souza^Ana", "Desouza^Ana", Likeness.EQUAL),
        ("Doe^Jane", "Doe^J", Likeness.ABRIDGED),
        ("Doe^Jane^Mary", "Doe^Jane^M", Likeness.ABRIDGED),
        ("Doe^Jane", "Jane^Doe", Likeness.ABRIDGED),  # put into the wrong fields
        ("Doe^Jane", "Doe", Likeness.AKIN),
        ("Doe^J", "D^Jane", Likeness.FOREIGN),
        ("Schmidt^Ann", "Schmitt^Ann", Likeness.AKIN),
        ("Schmidt-Meier^Ann", "Meier^Berta", Likeness.AKIN),
        ("Doe^Jane", "Roe^Max", Likeness.FOREIGN),
        ("がみ^あい", "かみ^あき", Likeness.FOREIGN),  # marks are letters there
        ("กิ^มา", "กี^นา", Likeness.FOREIGN),
        ("王^小东", "李^小东", Likeness.AKIN),
        ("Ivanov^Ivan", "Иванов^Иван", Likeness.UNKNOWN),
        ("Yamada^Tarou", "山田^太郎", Likeness.UNKNOWN),
        ("", "Doe^Jane", Likeness.UNKNOWN),
        ("^^", "Doe^Jane", Likeness.UNKNOWN),
        ("ANONYMOUS", "Doe^Jane", Likeness.UNKNOWN),
        ("2209", "Doe^Jane", Likeness.UNKNOWN),
        ("2209", "2210", Likeness.FOREIGN),
    ],
)
def test_likeness(one: str, other: str, likeness: Likeness) -> None:
    assert compare_names(name_key(one), name_key(other)) is likeness
    assert compare_names(name_key(other), name_key(one)) is likeness


def test_any_group_may_agree() -> None:
    """PS3.5 H.3: one person, whose alphabetic groups differ in script."""
    one = identity_of(header(patient_names=("Yamada^Tarou", "山田^太郎", "やまだ^たろう")))
    other = identity_of(header(patient_names=("ﾔﾏﾀﾞ^ﾀﾛｳ", "山田^太郎", "やまだ^たろう"), birth_date=""))
    assert both(one, other) is SAME
    only = identity_of(header(patient_names=("山田^太郎",), birth_date=""))
    assert both(one, only) is SAME


# Fillers


@pytest.mark.parametrize(
    "name",
    [
        "ANONYMOUS",
        "anonymized^^",
        "UNKNOWN^MALE",
        "No^Name",
        "De-Identified",
        "Unbekannt",
        "---",
        "^^^^",
        "?",
    ],
)
def test_names_of_nobody(name: str) -> None:
    assert identity_of(header(patient_name=name)).name == ""


@pytest.mark.parametrize(
    "name",
    ["Anonymous^Male^1960", "Null^Jane", "ANON 17", "Test", "PHANTOM^QA", "Male^Ann", "Name", "Doe^John"],
)
def test_names_that_name_somebody(name: str) -> None:
    assert identity_of(header(patient_name=name)).name


@pytest.mark.parametrize(
    "patient_id", ["", "0", "0000", " \0", "-", "???", "N/A", "na", "UNKNOWN", "anon", "No ID"]
)
def test_ids_of_nobody(patient_id: str) -> None:
    found = identity_of(header(patient_id=patient_id, issuer="H"))
    assert (found.patient_id, found.issuer) == ("", "")


@pytest.mark.parametrize("patient_id", ["1", "0001", "TEST", "QA", "ANON0A8A", "ID-7", "Ⅷ", "日本"])
def test_ids_that_identify(patient_id: str) -> None:
    assert identity_of(header(patient_id=f" {patient_id}\0 ")).patient_id == patient_id


@pytest.mark.parametrize(
    ("birth_date", "expected"),
    [
        ("19000101", ""),
        ("00010101", ""),
        ("18000101", ""),
        ("99991231", ""),
        ("", ""),
        ("19010102", "19010102"),
    ],
)
def test_birth_dates_of_nobody(birth_date: str, expected: str) -> None:
    assert identity_of(header(birth_date=birth_date)).birth_date == expected


@pytest.mark.parametrize(
    ("changes", "is_weak"),
    [
        ({}, False),
        ({"patient_name": ""}, False),
        ({"birth_date": ""}, False),
        ({"patient_name": "", "birth_date": ""}, True),
        ({"patient_id": ""}, False),
        ({"patient_id": "", "patient_name": ""}, True),
        ({"patient_id": "", "birth_date": ""}, True),  # a name alone is no identity
        ({"patient_id": "0000", "patient_name": "ANONYMOUS"}, True),
    ],
)
def test_what_only_its_study_holds_together(changes: dict[str, str], is_weak: bool) -> None:
    found = identity_of(header(**changes))
    assert found.is_weak is is_weak
    assert found.study == (header().study_uid if is_weak else "")


# Any text

TEXT = st.text("aAbB äÄеё山田がﾀ\u0301\u3099^-1\0\u200d\ud800", max_size=12)
identities = st.builds(
    lambda **parts: identity_of(header(**parts)),
    patient_id=st.sampled_from(["", "1", "0"]),
    issuer=st.sampled_from(["", "A", "B"]),
    patient_names=st.lists(TEXT, max_size=3).map(tuple),
    birth_date=st.sampled_from(["", BORN, OTHER_BIRTH]),
    sex=st.sampled_from(["", "M", "F"]),
)


@settings(deadline=None)
@given(identities, identities)
def test_symmetric_and_equal_ones_never_differ(one: Identity, other: Identity) -> None:
    assert compare(one, other) is compare(other, one)
    assert compare(one, one) is (MAYBE if one.is_weak else SAME)
