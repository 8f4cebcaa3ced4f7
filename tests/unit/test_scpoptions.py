"""Options of the receiver: the command line and the file say the same things, and mistakes are named."""

import tomllib
from dataclasses import FrozenInstanceError, fields
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from dicomfs.errors import UsageError
from dicomfs.model import Duplicates
from dicomfs.scpoptions import (
    ScpOptions,
    Watermark,
    access,
    for_this_machine,
    scp_arguments,
    scp_flags,
    scp_options,
    scp_table,
)

EVERYTHING = """
host = "::"
port = 104
aet = " PACS "
allow = ["CT1@10.1.2.3", "MR*@10.1.0.0/16", "*@2001:db8::/32", "WS7", "A@B@*"]
peer = ["CT1@10.1.2.3:104", "MR1@mr.radiology.example:11112", "US1@[2001:db8::7]:2762/tls", "A@B@h:1"]
open = true
require_called_ae = false
tls_certificate = "/etc/dicomfs/cert.pem"
tls_key = "/etc/dicomfs/key.pem"
tls_ca = "/etc/dicomfs/scanners.pem"
tls_client = "off"
max_associations = 100
max_associations_per_peer = 7
max_pdu = "64K"
max_object = 4294967296
idle_seconds = 600
dimse_seconds = 20
acse_seconds = 10
min_free = "5%"
duplicates = "newest"
drain_seconds = 0
"""


def given(**texts: Any) -> ScpOptions:
    """As the command line gives them."""
    return scp_options(texts, ScpOptions())


def test_a_file_sets_everything() -> None:
    table = tomllib.loads(EVERYTHING)
    assert set(table) == {item.name for item in fields(ScpOptions)}, "the example has every option"
    options = scp_table(table, "file [scp]")
    assert (options.host, options.port, options.aet) == ("::", 104, "PACS")
    assert [(entry.ae_title, entry.network) for entry in options.allow] == [
        ("CT1", ip_network("10.1.2.3/32")),
        ("MR*", ip_network("10.1.0.0/16")),
        ("*", ip_network("2001:db8::/32")),
        ("WS7", None),
        ("A@B", None),
    ]
    assert (options.open, options.require_called_ae) == (True, False)
    assert options.tls_certificate == Path("/etc/dicomfs/cert.pem")
    assert options.tls_key == Path("/etc/dicomfs/key.pem")
    assert options.tls_ca == Path("/etc/dicomfs/scanners.pem")
    assert options.tls_client == "off"
    assert (options.max_associations, options.max_associations_per_peer) == (100, 7)
    assert (options.max_pdu, options.max_object) == (65_536, 4 * 1024**3)
    assert (options.idle_seconds, options.dimse_seconds, options.acse_seconds) == (600, 20, 10)
    assert options.min_free == Watermark(percent=5)
    assert (options.duplicates, options.drain_seconds) == (Duplicates.NEWEST, 0)


def test_every_option_can_be_changed_from_its_default() -> None:
    options, usual = scp_table(tomllib.loads(EVERYTHING), "file"), ScpOptions()
    assert [i.name for i in fields(ScpOptions) if getattr(options, i.name) == getattr(usual, i.name)] == []


def test_values_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        ScpOptions().port = 1  # type: ignore[misc]


def test_the_command_line_says_it_with_the_same_words() -> None:
    wanted = scp_table(tomllib.loads(EVERYTHING), "file")
    texts: dict[str, Any] = {
        name: value if isinstance(value, bool | list) else str(value)
        for name, value in tomllib.loads(EVERYTHING).items()
    }
    assert scp_options(texts, ScpOptions()) == wanted


def test_the_command_line_wins_over_the_file() -> None:
    base = scp_table({"port": 104, "allow": ["CT1"], "open": True}, "file")
    options = scp_options({"allow": ["MR1", "MR2"], "open": False}, base)
    assert [str(entry) for entry in options.allow] == ["MR1", "MR2"]
    assert (options.port, options.open) == (104, False)


def test_defaults_are_safe() -> None:
    options = ScpOptions()
    assert (options.open, options.allow, options.require_called_ae) == (False, (), True)
    assert options.tls_client == "required"
    assert options.duplicates is Duplicates.KEEP_FIRST
    assert options.min_free.of(10**12) > 0
    assert options.max_associations_per_peer < options.max_associations


@pytest.mark.parametrize("options", [ScpOptions(), scp_table(tomllib.loads(EVERYTHING), "file")])
def test_flags_can_be_written_back(options: ScpOptions) -> None:
    """`serve` starts its receiver with them."""
    flags = {flag.word: flag for flag in scp_flags()}
    texts: dict[str, Any] = {}
    for word in scp_arguments(options):
        name, is_valued, value = word.partition("=")
        flag = flags[name.replace("--no-", "--", 1)]
        if flag.is_list:
            texts.setdefault(flag.name, []).append(value)
        else:
            texts[flag.name] = value if is_valued else not name.startswith("--no-")
    assert scp_options(texts, ScpOptions()) == options


@pytest.mark.parametrize(
    ("name", "text", "needs"),
    [
        ("port", "65536", "from 0 to 65535"),
        ("port", "many", "from 0 to 65535"),
        ("aet", "", "1 to 16 ASCII"),
        ("aet", "SEVENTEEN_LETTERS", "1 to 16 ASCII"),
        ("tls_certificate", "", "name of a file"),
        ("tls_client", "optional", "one of required, off"),
        ("max_associations", "0", "from 1 to 10000"),
        ("max_associations_per_peer", "0", "from 1 to 10000"),
        ("max_pdu", "4095", "from 4K to 16M or 0"),
        ("max_pdu", "17M", "from 4K to 16M or 0"),
        ("max_object", "1000", "from 1M to 1T"),
        ("max_object", "2T", "from 1M to 1T"),
        ("idle_seconds", "0", "from 1 to 86400"),
        ("dimse_seconds", "3601", "from 1 to 3600"),
        ("acse_seconds", "0", "from 1 to 3600"),
        ("min_free", "91%", "0% to 90%"),
        ("min_free", "some", "such as 10G"),
        ("min_free", "-1%", "0% to 90%"),
        ("duplicates", "first", "keep-first, newest, both, reject"),
        ("drain_seconds", "86401", "from 0 to 86400"),
    ],
)
def test_wrong_values_name_flag_and_range(name: str, text: str, needs: str) -> None:
    with pytest.raises(UsageError, match=needs) as caught:
        given(**{name: text})
    assert f"--{name.replace('_', '-')} does not take '{text}'" in str(caught.value)
    with pytest.raises(UsageError) as caught:
        scp_table({name: text}, "/etc/d.toml [scp]")
    assert str(caught.value).startswith("/etc/d.toml [scp]: ")
    assert f"'{name}'" in str(caught.value)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"prot": 104}, "unknown key 'prot'.*port.*allow"),
        ({"port": "104"}, "'port' needs a whole number, not '104'"),
        ({"port": True}, "'port' needs a whole number"),
        ({"port": -1}, "'port' does not take '-1'"),
        ({"open": 1}, "'open' needs true or false"),
        ({"open": "yes"}, "'open' needs true or false"),
        ({"allow": "CT1@10.1.2.3"}, r"'allow' needs a list such as \[\"CT1"),
        ({"allow": [1]}, "'allow' needs a list"),
        ({"allow": ["CT1@10.1.2.3", "CT2@ct2"]}, "allow entry 'CT2@ct2'"),
        ({"max_pdu": 1.5}, "'max_pdu' needs"),
        ({"max_pdu": 1000}, "'max_pdu' does not take '1000': it needs a size from 4K"),
        ({"min_free": -1}, "'min_free' does not take '-1'"),
        ({"tls_key": 1}, "'tls_key' needs a path"),
        ({"duplicates": True}, "'duplicates' needs a text"),
    ],
)
def test_mistakes_in_a_file_are_named(table: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=rf"^/etc/d\.toml \[scp\]: .*{said}"):
        scp_table(table, "/etc/d.toml [scp]")


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"tls_key": "k"}, "tls_key needs tls_certificate"),
        ({"tls_ca": "k"}, "tls_ca needs tls_certificate"),
        ({"tls_certificate": "c"}, "needs tls_ca.*tls_client = off"),
    ],
)
def test_options_that_do_not_fit_each_other(texts: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        given(**texts)


def test_tls_options_that_fit() -> None:
    assert given(tls_certificate="c", tls_client="off").tls_ca is None
    assert given(tls_certificate="c", tls_key="k", tls_ca="a").tls_client == "required"
    assert given(tls_certificate="c", tls_ca="a", tls_client="off").tls_ca == Path("a")


def test_the_file_and_the_command_line_may_share_the_options_of_tls() -> None:
    base = scp_table({"tls_key": "k", "tls_ca": "a"}, "file")
    assert scp_options({"tls_certificate": "c"}, base).tls_key == Path("k")


@pytest.mark.parametrize(
    ("text", "disk_bytes", "free_bytes"),
    [
        *(("10G", 10**12, 10 << 30), ("5%", 10**12, 5 * 10**10), ("5 %", 200, 10)),
        *(("0", 10**12, 0), ("0%", 10**12, 0)),
    ],
)
def test_watermarks(text: str, disk_bytes: int, free_bytes: int) -> None:
    assert given(min_free=text).min_free.of(disk_bytes) == free_bytes


# Who may send


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.1.2.3", "pacs.example"])  # noqa: S104
def test_a_receiver_that_nobody_may_send_to_is_refused_with_both_ways_on(host: str) -> None:
    with pytest.raises(UsageError) as caught:
        access(given(host=host))
    for way in ("--allow CT1@10.1.2.3", 'allow = ["CT1@10.1.2.3"', "--open"):
        assert way in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_programs_of_this_machine_need_no_list(host: str) -> None:
    guard = access(given(host=host))
    assert not guard.is_open
    assert guard.refusal("ANY", "DICOMFS", "127.0.0.1") is None
    assert guard.refusal("ANY", "DICOMFS", "::1") is None
    assert guard.refusal("ANY", "DICOMFS", "10.0.0.1") is not None


def test_a_list_holds_on_this_machine_too() -> None:
    guard = access(given(host="127.0.0.1", allow=["CT1@127.0.0.1"]))
    assert guard.refusal("CT1", "DICOMFS", "127.0.0.1") is None
    assert guard.refusal("CT2", "DICOMFS", "127.0.0.1") is not None


def test_what_is_asked_is_what_the_options_say() -> None:
    guard = access(given(aet="PACS", open=True, require_called_ae=False))
    assert (guard.ae_title, guard.is_open, guard.require_called_ae) == ("PACS", True, False)
    guard = access(given(allow=["CT1@10.1.2.3"]))
    assert (guard.is_open, guard.require_called_ae) == (False, True)
    assert guard.refusal("CT1", "DICOMFS", "10.1.2.3") is None
    assert guard.refusal("CT1", "OTHER", "10.1.2.3") is not None


@pytest.mark.parametrize(
    ("texts", "host"),
    [
        *(({}, "127.0.0.1"), ({"open": True}, ""), ({"allow": ["CT1"]}, "")),
        *(({"host": "0.0.0.0"}, "0.0.0.0"), ({"host": "::1"}, "::1")),  # noqa: S104
    ],
)
def test_serve_without_senders_stays_on_this_machine(texts: dict[str, Any], host: str) -> None:
    assert for_this_machine(given(**texts)).host == host
