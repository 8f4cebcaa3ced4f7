"""The text of smb.conf, without a Samba."""

from pathlib import Path

import pytest

from dicomfs.errors import UsageError
from dicomfs.samba import (
    configuration,
    global_definition,
    glusterfs_fuse_available,
    prepare,
    samba_version,
    share_definition,
)

ROOT = Path(__file__).parents[2]
MOUNT = Path("/srv/dicom")


def settings(text: str) -> dict[str, str]:
    """What an smb.conf says, by lower-case name; of one section."""
    pairs = (
        line.split("=", 1) for line in text.splitlines() if "=" in line and not line.lstrip().startswith("#")
    )
    return {name.strip(): value.strip() for name, value in pairs}


def test_share_is_read_only_and_for_known_users() -> None:
    said = settings(share_definition("dicom", MOUNT, has_glusterfs_fuse=True, valid_users="@ct +mr"))
    assert said["path"] == "/srv/dicom"
    assert said["read only"] == "yes"
    assert said["guest ok"] == "no"
    assert said["valid users"] == "@ct +mr"


def test_share_asks_the_mount_little() -> None:
    said = settings(share_definition("dicom", MOUNT, has_glusterfs_fuse=True))
    for costly in ("mangled names", "store dos attributes", "ea support", "nt acl support", "map archive"):
        assert said[costly] == "no"
    assert said["vfs objects"] == "glusterfs_fuse"
    assert {"Thumbs.db", "desktop.ini", ".DS_Store", "._*", "autorun.inf"} <= set(
        said["veto files"].split("/")
    )


def test_share_without_the_module_says_so() -> None:
    text = share_definition("dicom", MOUNT, has_glusterfs_fuse=False)
    assert "vfs objects" not in settings(text)
    assert "samba-vfs-modules" in text


def test_share_for_macs_keeps_the_module_last() -> None:
    modules = settings(share_definition("dicom", MOUNT, has_glusterfs_fuse=True, for_macs=True))[
        "vfs objects"
    ]
    assert modules.split() == ["fruit", "streams_xattr", "glusterfs_fuse"]


@pytest.mark.parametrize("for_macs", [False, True])
@pytest.mark.parametrize("has_glusterfs_fuse", [False, True])
def test_every_line_is_a_section_a_setting_or_a_comment(*, has_glusterfs_fuse: bool, for_macs: bool) -> None:
    text = configuration("dicom", MOUNT, has_glusterfs_fuse=has_glusterfs_fuse, for_macs=for_macs)
    for line in text.splitlines():
        bare = line.strip()
        assert not bare or bare[0] in "#[" or " = " in bare, line
        assert line == line.rstrip()
        assert not line.endswith("\\")


def test_globals_protect() -> None:
    said = settings(global_definition())
    assert said["server min protocol"] == "SMB3_00"
    assert said["server signing"] == "mandatory"
    assert said["server smb encrypt"] == "required"
    assert said["map to guest"] == "never"


@pytest.mark.parametrize(
    ("version", "there"), [(None, False), ((4, 17), False), ((4, 21), False), ((4, 22), True), ((5, 0), True)]
)
def test_setting_of_newer_sambas_is_a_comment_for_older_ones(
    version: tuple[int, int] | None, there: bool
) -> None:
    text = global_definition(version=version)
    assert "smb3 directory leases = no" in text
    assert ("smb3 directory leases" in settings(text)) is there


@pytest.mark.parametrize("name", ["", " x", "global", "IPC$", "a/b", "a]b", "a\nb", "a%U", "x" * 81])
def test_refused_share_names(name: str) -> None:
    with pytest.raises(UsageError, match="share name"):
        share_definition(name, MOUNT, has_glusterfs_fuse=True)


@pytest.mark.parametrize("path", ["relative", "/a%Ub", "/a\nb = c", "/a\\", '/a"b', "/a "])
def test_refused_paths(path: str) -> None:
    with pytest.raises(UsageError, match="path"):
        share_definition("dicom", Path(path), has_glusterfs_fuse=True)


@pytest.mark.parametrize("users", ["", "a\nguest ok = yes", "a\\"])
def test_refused_users(users: str) -> None:
    with pytest.raises(UsageError, match="valid users"):
        share_definition("dicom", MOUNT, has_glusterfs_fuse=True, valid_users=users)


def test_shipped_configuration_is_what_the_command_prints() -> None:
    shipped = (ROOT / "samba" / "dicomfs.conf").read_text(encoding="utf-8")
    assert shipped == configuration("dicom", MOUNT, has_glusterfs_fuse=True)


@pytest.mark.parametrize(
    "place", ["x86_64-linux-gnu/samba/vfs/glusterfs_fuse.so", "samba/vfs/glusterfs_fuse.so"]
)
def test_module_is_found_where_distributions_put_it(tmp_path: Path, place: str) -> None:
    assert not glusterfs_fuse_available([tmp_path])
    module = tmp_path / place
    module.parent.mkdir(parents=True)
    module.touch()
    assert glusterfs_fuse_available([tmp_path])


@pytest.mark.parametrize(
    ("says", "version"),
    [
        ("echo Version 4.17.12-Debian", (4, 17)),
        ("echo Version 4.22.3", (4, 22)),
        ("echo what", None),
        ("exit 1", None),
    ],
)
def test_version_is_read_from_the_program(tmp_path: Path, says: str, version: tuple[int, int] | None) -> None:
    program = tmp_path / "smbd"
    program.write_text(f"#!/bin/sh\n{says}\n")
    program.chmod(0o755)
    assert samba_version(str(program)) == version


def test_prepare_refuses_what_cannot_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="port 0"):
        prepare(tmp_path / "smb", tmp_path, 0, smbd="/bin/true")
    with pytest.raises(UsageError, match="too long"):
        prepare(tmp_path / ("x" * 80), tmp_path, 4450, smbd="/bin/true")
    with pytest.raises(UsageError, match="share name"):
        prepare(tmp_path / "smb", tmp_path, 4450, "a/b", smbd="/bin/true")
    monkeypatch.setattr("dicomfs.samba.shutil.which", lambda *_arguments, **_options: None)
    with pytest.raises(UsageError, match="apt install samba"):
        prepare(tmp_path / "smb", tmp_path, 4450)
    assert list(tmp_path.iterdir()) == []
