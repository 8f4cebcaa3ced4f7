"""The whole chain as a clinic has it: `dicomfs serve`, DCMTK's senders over TCP, a file browser over SMB."""

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import shipped, wait_until
from tests.system.programs import (
    Served,
    dcmsend,
    named,
    original,
    parse_listing,
    serving,
    storescp,
    storescu,
)

UMLAUTS = "Müller-Lüdenscheidt Jürgen"
JAPANESE = "山田 太郎"
STUDY = "1.2.826.0.1.3680043.8.498.42"
SAMPLES = (
    "CT_small.dcm",
    "MR_small_RLE.dcm",
    "emri_small.dcm",  # 10 frames
    "SC_rgb_jpeg_dcmtk.dcm",
    "JPEG2000.dcm",
    "examples_palette.dcm",
    "rtplan.dcm",  # nothing to see
)


@dataclass(frozen=True, slots=True)
class Clinic:
    served: Served
    people: list[Path]
    samples: list[Path]

    def names(self, *folders: str) -> list[str]:
        return sorted(path.name for path in self.served.mount.joinpath(*folders).iterdir())

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.served.mount.rglob("*") if path.is_file())

    def relative(self, path: Path) -> str:
        return path.relative_to(self.served.mount).as_posix()


@pytest.fixture(scope="module")
def clinic() -> Iterator[Clinic]:
    with tempfile.TemporaryDirectory(prefix="dicomfs-test-") as folder:
        scratch = Path(folder).resolve()
        people = [
            named(scratch / "sent" / "u.dcm", UMLAUTS.replace(" ", "^"), patient_id="U", study=STUDY),
            named(scratch / "sent" / "j.dcm", f"Yamada^Tarou={JAPANESE.replace(' ', '^')}", patient_id="J"),
            named(scratch / "sent" / "k.dcm", JAPANESE.replace(" ", "^"), patient_id="K"),
        ]
        samples = [shipped(name) for name in SAMPLES]
        with serving(scratch, "-o", "formats=jpg+png+dcm") as served:
            storescu(served.port, *people)
            dcmsend(served.port, *samples)
            # Names appear one after the other, those of the last format at the end.
            wait_until(
                lambda: sum(1 for _ in (served.mount / "dcm").rglob("*.dcm")) == len(people) + len(samples),
                "everything that was sent",
            )
            yield Clinic(served, people, samples)
        assert not list(served.temporary.iterdir())


def test_every_file_has_the_same_size_and_bytes_everywhere(clinic: Clinic, tmp_path: Path) -> None:
    listed = parse_listing(clinic.served.smb("recurse ON; ls"))
    sizes = {clinic.relative(path): path.stat().st_size for path in clinic.files}
    clinic.served.smb("recurse ON; prompt OFF; mget *", cwd=tmp_path)
    copied = {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    # One of the samples has ten frames, one nothing to show: that one is in `dcm` only.
    assert sum(name.startswith("jpg/") for name in sizes) == len(clinic.people) + len(SAMPLES) - 1 + 9
    assert listed == sizes
    assert copied.keys() == sizes.keys()
    for path in clinic.files:
        name = clinic.relative(path)
        data = path.read_bytes()
        assert len(data) == sizes[name], name
        assert copied[name] == data, name


def test_every_picture_is_whole(clinic: Clinic) -> None:
    for path in (clinic.served.mount / "jpg").rglob("*.jpg"):
        assert path.read_bytes().startswith(b"\xff\xd8")
        assert path.read_bytes().endswith(b"\xff\xd9"), path.name  # EOI
    for path in (clinic.served.mount / "png").rglob("*.png"):
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), path.name


def test_the_three_views_have_the_same_names(clinic: Clinic) -> None:
    def names(view: str) -> set[str]:
        top = clinic.served.mount / view
        return {str(path.relative_to(top).with_suffix("")) for path in top.rglob("*") if path.is_file()}

    assert names("jpg") == names("png")
    whole = {name for name in names("jpg") if "/".join(name.split("/")[2:]).count("_") == 2}
    assert whole  # and those of one frame are what `dcm` has, too
    assert whole < names("dcm")


def test_what_was_sent_comes_back_bit_for_bit(clinic: Clinic, tmp_path: Path) -> None:
    # DCMTK writes data sets its own way when it sends them: its own receiver says what was on the wire.
    with storescp(tmp_path / "wire") as port:
        storescu(port, *clinic.people)
        dcmsend(port, *clinic.samples)
    shown = sorted(original(path).digest for path in (clinic.served.mount / "dcm").rglob("*.dcm"))
    assert shown == sorted(original(path).digest for path in (tmp_path / "wire").iterdir())
    assert len(shown) == len(clinic.people) + len(clinic.samples)


@pytest.mark.parametrize("name", [UMLAUTS, JAPANESE])
def test_names_of_the_world(clinic: Clinic, tmp_path: Path, name: str) -> None:
    assert name in clinic.names("jpg")
    folder = f"jpg/{name}/2024-02-29"
    (picture,) = clinic.names(folder)
    clinic.served.smb(f'get "{folder}/{picture}" got', cwd=tmp_path)
    assert (tmp_path / "got").read_bytes() == (clinic.served.mount / folder / picture).read_bytes()


@pytest.mark.parametrize("change", [str.upper, str.lower, str.swapcase])
def test_a_name_in_another_case_is_found(
    clinic: Clinic, tmp_path: Path, change: Callable[[str], str]
) -> None:
    folder = f"jpg/{UMLAUTS}/2024-02-29"
    (picture,) = clinic.names(folder)
    said = clinic.served.smb(f'get "{change(f"{folder}/{picture}")}" got', cwd=tmp_path)
    assert (tmp_path / "got").read_bytes() == (clinic.served.mount / folder / picture).read_bytes(), said


@pytest.mark.parametrize(
    "name", ["jpg/Nobody", f"jpg/{UMLAUTS}/2024-02-28", f"jpg/{UMLAUTS}/2024-02-29/FIESTA_4_77.jpg", "gif"]
)
def test_a_missing_name_is_missing(clinic: Clinic, tmp_path: Path, name: str) -> None:
    said = clinic.served.smb(f'get "{name}" got', cwd=tmp_path)
    assert "NT_STATUS_OBJECT_NAME_NOT_FOUND" in said or "NT_STATUS_OBJECT_PATH_NOT_FOUND" in said
    assert not (tmp_path / "got").exists()
    with pytest.raises(FileNotFoundError):
        (clinic.served.mount / name).stat()


@pytest.mark.parametrize(
    "command",
    [
        'put written "jpg/written.jpg"',
        'put written "{picture}"',
        'mkdir "jpg/New"',
        'del "{picture}"',
        'rename "{picture}" "jpg/other.jpg"',
        'rmdir "jpg/{patient}"',
    ],
)
def test_writing_over_smb_is_refused(clinic: Clinic, tmp_path: Path, command: str) -> None:
    before = [(clinic.relative(path), path.read_bytes()) for path in clinic.files]
    picture = next(name for name, _ in before if name.endswith(".jpg"))
    (tmp_path / "written").write_bytes(b"x")
    said = clinic.served.smb(command.format(picture=picture, patient=UMLAUTS), cwd=tmp_path)
    assert "NT_STATUS_" in said
    assert [(clinic.relative(path), path.read_bytes()) for path in clinic.files] == before


def test_what_arrives_appears_in_an_open_folder(clinic: Clinic, tmp_path: Path) -> None:
    folder = f"jpg/{UMLAUTS}/2024-02-29"
    held = os.open(clinic.served.mount / folder, os.O_RDONLY | os.O_DIRECTORY)

    def listed() -> set[str]:
        with os.scandir(held) as entries:
            return {entry.name for entry in entries}

    try:
        before = listed()
        assert clinic.served.smb(f'ls "{folder}/*"').count(".jpg ") == len(before)
        late = named(tmp_path / "late.dcm", UMLAUTS.replace(" ", "^"), patient_id="U", number=9, study=STUDY)
        storescu(clinic.served.port, late)
        wait_until(
            lambda: "FIESTA_4_9.jpg " in clinic.served.smb(f'ls "{folder}/*"'), "it is listed over SMB", 5
        )
        wait_until(lambda: listed() - before == {"FIESTA_4_9.jpg"}, "the folder held open", 5)
    finally:
        os.close(held)
    wait_until((clinic.served.mount / "dcm" / folder[4:] / "FIESTA_4_9.dcm").exists, "the last of its names")
    # The other tests compare what is shown with what was sent.
    clinic.people.append(late)
