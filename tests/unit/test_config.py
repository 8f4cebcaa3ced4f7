"""Options and configuration file: every wrong word is named, with what would have been right."""

from pathlib import Path

import pytest

from dicomfs.config import MountOptions, load, mount_options, option_help
from dicomfs.errors import UsageError
from dicomfs.selection import Since
from dicomfs.spelling import Label, Layout


def test_later_options_win_and_lists_are_joined_by_plus() -> None:
    options = mount_options(["formats=jpg+dcm,quality=70", "quality=80"])
    assert options.formats == ("jpg", "dcm")
    assert options.quality == 80


def test_what_mount_and_systemd_add_is_accepted() -> None:
    words = "ro,nosuid,nodev,noauto,_netdev,nofail,x-systemd.automount,comment=systemd.mount,defaults"
    assert mount_options([words]) == MountOptions()


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("64M", 64 << 20), ("2G", 2 << 30), ("1024", 1024), ("512KiB", 512 << 10)]
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert mount_options([f"cache={text}"]).cache == size_bytes


def test_a_disk_cache_is_off_until_a_folder_is_named() -> None:
    assert mount_options([]).disk_cache is None
    options = mount_options(["disk_cache=/var/cache/dicomfs,disk_cache_size=20G"])
    assert (options.disk_cache, options.disk_cache_size) == (Path("/var/cache/dicomfs"), 20 << 30)
    assert mount_options(["disk_cache="], options).disk_cache is None


def test_masks_are_octal() -> None:
    assert mount_options(["umask=022"]).umask == 0o022


def test_an_unknown_option_lists_the_valid_ones() -> None:
    with pytest.raises(UsageError) as caught:
        mount_options(["format=jpg"])
    assert "'format'" in str(caught.value)
    for name, _ in option_help():
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("formats=", "formats=doc", "formats=jpg+", "quality=0", "quality=101", "quality=high", "quality"),
        *("cache=much", "umask=9", "umask=07777", "warm=maybe", "frames=0", "frames=50000", "uid=-1"),
        *("disk_cache=cache", "disk_cache_size=255M", "disk_cache_size=0", "disk_cache_size=much"),
        *("workers=1000", "time_limit=0", "allow_other=perhaps", "layout=date", "label=birthday", "pad=7"),
        *("date_format=%d.%m.%y", "date_format=%Y/%m/%d", "since=lately", "modality=", "modality=M?"),
    ],
)
def test_wrong_values_name_option_and_remedy(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        mount_options([text])
    assert f"'{text.partition('=')[0]}'" in str(caught.value)


def test_views() -> None:
    text = "layout=date/patient,label=name-id,date_format=%d.%m.%Y,pad=4,modality=mr+XA,since=30d"
    options = mount_options([text])
    assert (options.layout, options.label) == (Layout.DATE_PATIENT, Label.NAME_ID)
    assert options.date_format.write("20240131") == "31.01.2024"
    assert (options.pad, options.modality, options.since) == (4, ("MR", "XA"), Since("30d"))


def test_flags_need_no_value() -> None:
    assert mount_options(["allow_other"]).allow_other
    assert not mount_options(["warm=off"]).warm


def test_a_file_sets_everything_and_the_environment_wins_over_its_store(tmp_path: Path) -> None:
    path = tmp_path / "dicomfs.toml"
    path.write_text(
        'store = "/srv/a"\n[scp]\nport = 104\naet = "PACS"\nallow = ["CT1@10.1.2.3"]\n'
        '[mount]\nformats = ["png", "dcm"]\nwarm = false\n'
    )
    settings = load(path, {})
    assert settings.store == Path("/srv/a")
    assert (settings.scp.port, settings.scp.aet) == (104, "PACS")
    assert [str(entry) for entry in settings.scp.allow] == ["CT1@10.1.2.3"]
    assert settings.mount.formats == ("png", "dcm")
    assert not settings.mount.warm
    assert load(path, {"DICOMFS_STORE": "/srv/b"}).store == Path("/srv/b")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("stroe = '/x'", "stroe"),
        ("[scp]\nprot = 104", "prot"),
        ("[mount]\nformat = 'jpg'", "format"),
        ("[scp]\nport = '104'", "port"),
        ("[scp]\nopen = 1", "open"),
        ("store = 7", "store"),
        ("store = ", "TOML"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "dicomfs.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=named):
        load(path, {})


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        load(tmp_path / "none.toml", {})


def test_owners_by_name_or_number() -> None:
    assert mount_options(["uid=root,gid=0"]).uid == 0
    with pytest.raises(UsageError, match="'gid' does not take 'no-such-group-here'"):
        mount_options(["gid=no-such-group-here"])


def test_a_window_with_a_folder_of_its_own_has_a_short_name() -> None:
    long = "1000000.5/2000000.25"
    assert mount_options([f"window={long}"]).window == (long,)
    with pytest.raises(UsageError, match="too long for the name of a folder"):
        mount_options([f"window=auto+{long}"])
