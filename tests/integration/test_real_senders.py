"""Other people's senders: DCMTK, Orthanc, pynetdicom; whatever they send arrives without loss, in their form.

Transfer syntaxes are what they differ in: storescu proposes a context for each or, with `+C`, one for all;
dcmsend what the file has before what it could be converted to; Orthanc each in its own context.
"""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import UID

from tests.integration.test_scp import Door, opened, run, storescu, take_apart
from tests.support import LOCALHOST, connects, free_port, require, running, shipped

COMPRESSED = {
    "SC_rgb_small_odd_jpeg.dcm": ("-xy", "JPEG baseline"),
    "JPEG-LL.dcm": ("-xs", "JPEG lossless"),
    "MR_small_jp2klossless.dcm": ("-xv", "JPEG 2000 lossless"),
    "JPEG2000.dcm": ("-xw", "JPEG 2000"),
    "MR_small_jpeg_ls_lossless.dcm": ("-xt", "JPEG-LS lossless"),
    "MR_small_RLE.dcm": ("-xr", "RLE"),
    "image_dfl.dcm": ("-xd", "deflated"),
}
PLAIN = {
    "CT_small.dcm": "-xe",
    "MR_small_bigendian.dcm": "-xb",
    "rtplan.dcm": "-xi",
}
LOSSY = frozenset({"SC_rgb_small_odd_jpeg.dcm", "JPEG2000.dcm"})


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with opened(tmp_path / "store") as running_door:
        yield running_door


def check_kept(door: Door, names: list[str]) -> None:
    """Every object is there once, in the transfer syntax of its file, with the same pixels."""
    kept = {one.sop_uid: one for one in door.originals()}
    assert len(kept) == len(door.originals()) == len(names)
    for name in names:
        sent = pydicom.dcmread(shipped(name))
        one = kept[str(sent.SOPInstanceUID)]
        assert UID(one.transfer_syntax) == sent.file_meta.TransferSyntaxUID, name
        arrived = pydicom.dcmread(one.path)
        assert arrived.get("PixelData", b"").rstrip(b"\0") == sent.get("PixelData", b"").rstrip(b"\0"), name


@pytest.mark.parametrize("name", [*COMPRESSED, *PLAIN])
def test_storescu(door: Door, name: str) -> None:
    require("storescu")
    option = COMPRESSED[name][0] if name in COMPRESSED else PLAIN[name]
    done = storescu(door.port, "-R", option, shipped(name))
    assert done.returncode == 0, done.stderr
    check_kept(door, [name])


@pytest.mark.parametrize("name", sorted(COMPRESSED.keys() - LOSSY))
def test_storescu_that_proposes_all_in_one_context(door: Door, name: str) -> None:
    """It cannot convert, so what it proposes first has to be taken; lossy ones are not taken like that."""
    require("storescu")
    done = storescu(door.port, "-R", "+C", COMPRESSED[name][0], shipped(name))
    assert done.returncode == 0, done.stderr
    check_kept(door, [name])


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_jp2klossless.dcm"])
def test_storescu_sends_both_forms_by_its_usual_contexts(door: Door, name: str) -> None:
    """One for the compressed syntax and one for all others."""
    require("storescu")
    done = storescu(door.port, "-R", "-xv", shipped(name))
    assert done.returncode == 0, done.stderr
    check_kept(door, [name])


def test_dcmsend_converts_nothing(door: Door) -> None:
    require("dcmsend")
    names = [name for name in (*COMPRESSED, *PLAIN) if not name.startswith("MR_small")] + ["MR_small_RLE.dcm"]
    done = run("dcmsend", "-aec", "DICOMFS", LOCALHOST, door.port, *map(shipped, names))
    assert done.returncode == 0, done.stderr
    kept = {one.sop_uid: one.transfer_syntax for one in door.originals()}
    for name in COMPRESSED.keys() & set(names):
        sent = take_apart(shipped(name))
        uid = str(pydicom.dcmread(sent.path).SOPInstanceUID)
        assert kept[uid] == sent.transfer_syntax, name
    assert len(kept) == len(names)


def test_pynetdicom_sends_what_it_has(door: Door) -> None:
    from pynetdicom import AE  # noqa: PLC0415  as a sender

    sent = pydicom.dcmread(shipped("MR_small_RLE.dcm"))
    sender = AE(ae_title="PYNETDICOM")
    sender.add_requested_context(
        sent.SOPClassUID, [sent.file_meta.TransferSyntaxUID, "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]
    )
    association = sender.associate(LOCALHOST, door.port, ae_title="DICOMFS")
    assert association.is_established
    assert association.send_c_store(sent).Status == 0
    association.release()
    check_kept(door, ["MR_small_RLE.dcm"])


def test_orthanc_pushes(door: Door, tmp_path: Path) -> None:
    http = free_port()
    folder = tmp_path / "orthanc"
    folder.mkdir()
    configuration = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [],
        "DicomServerEnabled": False,
        "HttpPort": http,
        "AuthenticationEnabled": False,
        "RemoteAccessAllowed": False,
        "DicomModalities": {"dicomfs": ["DICOMFS", LOCALHOST, door.port]},
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(configuration), encoding="utf-8")
    names = ["CT_small.dcm", "JPEG-LL.dcm", "JPEG2000.dcm", "SC_rgb_small_odd_jpeg.dcm", "MR_small_RLE.dcm"]

    def post(what: str, body: bytes) -> dict[str, object]:
        request = urllib.request.Request(f"http://{LOCALHOST}:{http}/{what}", body)
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        assert isinstance(found, dict)
        return found

    with running(
        [require("Orthanc"), path], folder / "log", lambda: connects(http), "Orthanc answers", seconds=60
    ):
        ids = [str(post("instances", shipped(name).read_bytes())["ID"]) for name in names]
        done = post("modalities/dicomfs/store", json.dumps(ids).encode())
        assert (done["InstancesCount"], done["FailedInstancesCount"]) == (len(names), 0)
    check_kept(door, names)
