"""Who may send: entries, refusals, places."""

import threading
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.pdu import A_ASSOCIATE_RJ

from dicomfs.access import (
    LOOPBACK,
    Access,
    Admission,
    Allowed,
    PeerLimits,
    Refusal,
    ae_title,
    allowed,
    is_loopback,
    normalised,
)
from dicomfs.errors import UsageError


def lets_in(entry: str, calling_ae: str, address: str) -> bool:
    return Access("DICOMFS", (allowed(entry),)).refusal(calling_ae, "DICOMFS", address) is None


def meaning(refusal: Refusal | None) -> tuple[str, str, str]:
    """What the three numbers mean, by pynetdicom's reading of PS3.8 table 9-21."""
    assert refusal is not None
    pdu = A_ASSOCIATE_RJ()
    pdu.result, pdu.source, pdu.reason_diagnostic = refusal.result, refusal.source, refusal.diagnostic
    return pdu.result_str, pdu.source_str, pdu.reason_str


# Entries


@pytest.mark.parametrize(
    ("entry", "calling_ae", "address", "is_let_in"),
    [
        ("CT1@10.1.2.3", "CT1", "10.1.2.3", True),
        ("CT1@10.1.2.3", "CT1", "10.1.2.4", False),
        ("CT1@10.1.2.3", "CT2", "10.1.2.3", False),
        ("CT1@10.1.2.3", "ct1", "10.1.2.3", False),
        ("CT1@10.1.2.3", "CT11", "10.1.2.3", False),
        ("CT1@10.1.2.3", "  CT1 ", "10.1.2.3", True),
        (" CT1 @ 10.1.2.3 ", "CT1", "10.1.2.3", True),
        ("MR*@10.1.0.0/16", "MR", "10.1.255.255", True),
        ("MR*@10.1.0.0/16", "MR AVANTO", "10.1.0.0", True),
        ("MR*@10.1.0.0/16", "XMR", "10.1.2.3", False),
        ("MR*@10.1.0.0/16", "MR1", "10.2.0.0", False),
        ("*_MR@10.1.0.0/255.255.0.0", "GE_MR", "10.1.9.9", True),
        ("A*B*C@10.0.0.1", "AxxBC", "10.0.0.1", True),
        ("A*B*C@10.0.0.1", "ACB", "10.0.0.1", False),
        ("*@2001:db8::/32", "ANY", "2001:db8:1::5", True),
        ("*@2001:db8::/32", "ANY", "2001:db9::1", False),
        ("*@2001:db8::/32", "ANY", "10.1.2.3", False),
        ("*@fe80::/10", "ANY", "fe80::1%eth0", True),
        ("WS7", "WS7", "203.0.113.9", True),
        ("WS7", "WS7", "2001:db8::1", True),
        ("WS7", "WS7", "what is this", True),
        ("WS7", "WS8", "203.0.113.9", False),
        ("WS7@*", "WS7", "203.0.113.9", True),
        ("CT.1@10.1.2.3", "CTx1", "10.1.2.3", False),
        ("CT[1]@10.1.2.3", "CT1", "10.1.2.3", False),
        ("CT[1]@10.1.2.3", "CT[1]", "10.1.2.3", True),
        ("CT?@10.1.2.3", "CT1", "10.1.2.3", False),
        ("A@B@10.1.2.3", "A@B", "10.1.2.3", True),
        ("A@B@*", "A@B", "10.1.2.3", True),
        # IPv6 sockets show peers of IPv4 as mapped addresses, in the entry or in the system.
        ("CT1@10.1.2.3", "CT1", "::ffff:10.1.2.3", True),
        ("CT1@::ffff:10.1.2.3", "CT1", "10.1.2.3", True),
        ("CT1@::ffff:10.1.0.0/112", "CT1", "::ffff:10.1.200.1", True),
        ("CT1@::ffff:10.1.0.0/112", "CT1", "10.2.0.1", False),
        ("*@10.1.2.3", "CT1", "nonsense", False),
    ],
)
def test_who_is_let_in(entry: str, calling_ae: str, address: str, is_let_in: bool) -> None:
    assert lets_in(entry, calling_ae, address) is is_let_in


@given(
    st.text("AB1_ ", min_size=1, max_size=4),
    st.sampled_from(["*", "A*", "*B", "A*1", "AB1", "*_*"]),
)
def test_stars_are_those_of_a_shell(title: str, pattern: str) -> None:
    from fnmatch import fnmatchcase  # noqa: PLC0415  an independent reader of such patterns

    assert Allowed(pattern).matches_title(title) is fnmatchcase(title.strip(" "), pattern)


@given(
    st.ip_addresses(v=4),
    st.ip_addresses(v=4),
    st.integers(0, 32),
)
def test_networks_are_prefixes(inside: IPv4Address, other: IPv4Address, length: int) -> None:
    network = IPv4Network((inside, length), strict=False)
    mask = (1 << 32) - (1 << (32 - length))
    expected = int(inside) & mask == int(other) & mask
    assert lets_in(f"A@{network}", "A", str(other)) is expected
    assert lets_in(f"A@{network}", "A", f"::ffff:{other}") is expected


@pytest.mark.parametrize(
    ("entry", "remedy"),
    [
        ("", r"\*@10"),
        ("@10.1.2.3", r"\*@10\.1\.2\.3"),
        ("  @10.1.2.3", r"\*@10\.1\.2\.3"),
        ("10.1.2.3", r"\*@10\.1\.2\.3"),
        ("10.1.0.0/16", r"\*@10\.1\.0\.0/16"),
        ("CT1@", "such as 10"),
        ("CT1@10.1.2.3/16", r"10\.1\.0\.0/16 for the network, or 10\.1\.2\.3 for"),
        ("CT1@10.1.2", "such as 10"),
        ("CT1@10.1.2.256", "such as 10"),
        ("CT1@ct1.hospital.example", "host names are not looked up"),
        ("CT1@fe80::1%eth0", "such as 10"),
        ("CT1@10.1.2.3,10.1.2.4", "such as 10"),
        ("SEVENTEEN_LETTERS@10.1.2.3", "at most 16"),
        ("BACK\\SLASH@10.1.2.3", "no backslash"),
        ("TAB\tTAB@10.1.2.3", "ASCII"),
        ("RÖNTGEN@10.1.2.3", "ASCII"),
        ("*", "--open"),
        ("**@*", "--open"),
        ("*@0.0.0.0/0", "--open"),
        ("*@::/0", "--open"),
    ],
)
def test_wrong_entries_are_named_with_their_remedy(entry: str, remedy: str) -> None:
    with pytest.raises(UsageError, match=remedy) as caught:
        allowed(entry)
    assert f"'{entry}'" in str(caught.value)


@pytest.mark.parametrize("title", ["SIXTEEN_LETTERS_", "*SIXTEEN_LETTERS_*", "CT 1", "*-*"])
def test_titles_of_any_length_that_dicom_allows(title: str) -> None:
    assert allowed(f"{title}@10.0.0.1").ae_title == title


@pytest.mark.parametrize(
    "entry",
    ["CT1@10.1.2.3", "MR*@10.1.0.0/16", "*@2001:db8::/32", "WS7", "A@B@*", "CT1@2001:db8::1", "A@0.0.0.0/0"],
)
def test_entries_can_be_written_back(entry: str) -> None:
    assert str(allowed(entry)) == entry


def test_an_entry_for_the_loopback_is_programs_of_this_machine() -> None:
    access = Access("DICOMFS", LOOPBACK)
    for address in ("127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"):
        assert access.refusal("ANY", "DICOMFS", address) is None
    for address in ("10.0.0.1", "::2", "::ffff:10.0.0.1"):
        assert access.refusal("ANY", "DICOMFS", address) is not None


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("::FFFF:0a01:0203", "10.1.2.3"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("10.1.2.3", "10.1.2.3"),
    ],
)
def test_one_machine_has_one_spelling(address: str, expected: str) -> None:
    assert normalised(address) == ip_address(expected)


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        *(("127.0.0.1", True), ("127.0.0.2", True), ("::1", True), ("localhost", True)),
        *(("::ffff:127.0.0.1", True), ("0.0.0.0", False), ("::", False), ("", False)),  # noqa: S104
        *(("10.1.2.3", False), ("pacs.hospital.example", False), ("localhost.evil.example", False)),
    ],
)
def test_what_listens_on_this_machine_alone(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local


@pytest.mark.parametrize("title", ["", "   ", "SEVENTEEN_LETTERS", "A\\B", "A\nB", "É"])
def test_our_own_title_has_to_be_one(title: str) -> None:
    with pytest.raises(ValueError, match="1 to 16 ASCII"):
        ae_title(title)


def test_our_own_title_has_no_spaces_at_its_ends() -> None:
    assert ae_title("  PACS 1 ") == "PACS 1"


# Refusals

LIST = (allowed("CT1@10.1.2.3"), allowed("MR*@10.1.0.0/16"))


def test_a_stranger_is_not_recognised() -> None:
    refusal = Access("DICOMFS", LIST).refusal("CT9", "DICOMFS", "10.1.2.3")
    assert meaning(refusal) == (
        "Rejected (Permanent)",
        "DUL service-user",
        "Calling AE title not recognised",
    )
    assert refusal is not None
    assert "'CT9@10.1.2.3'" in refusal.reason, "the entry that would let it in"
    assert allowed("CT9@10.1.2.3").matches_title("CT9")


def test_a_known_title_from_elsewhere_is_not_recognised_and_the_log_tells_why() -> None:
    refusal = Access("DICOMFS", LIST).refusal("CT1", "DICOMFS", "::ffff:10.9.9.9")
    assert (refusal and (refusal.result, refusal.source, refusal.diagnostic)) == (1, 1, 3)
    assert refusal is not None
    assert "may not send from 10.9.9.9" in refusal.reason
    assert "'CT1@10.9.9.9'" in refusal.reason


def test_another_called_title_is_not_recognised() -> None:
    refusal = Access("DICOMFS", LIST).refusal("CT1", "PACS", "10.1.2.3")
    assert meaning(refusal) == (
        "Rejected (Permanent)",
        "DUL service-user",
        "Called AE title not recognised",
    )
    assert refusal is not None
    assert "'PACS'" in refusal.reason
    assert "'DICOMFS'" in refusal.reason


@pytest.mark.parametrize("called", ["DICOMFS", " DICOMFS", "DICOMFS         "])
def test_spaces_around_the_called_title_do_not_count(called: str) -> None:
    assert Access("DICOMFS ", LIST).refusal("CT1", called, "10.1.2.3") is None


def test_the_called_title_has_its_case() -> None:
    assert Access("DICOMFS", LIST).refusal("CT1", "dicomfs", "10.1.2.3") is not None


def test_a_stranger_does_not_learn_whether_our_title_was_right() -> None:
    access = Access("DICOMFS", LIST)
    for called in ("DICOMFS", "PACS"):
        refusal = access.refusal("CT9", called, "10.1.2.3")
        assert (refusal and (refusal.result, refusal.source, refusal.diagnostic)) == (1, 1, 3)


def test_an_empty_list_lets_nobody_in() -> None:
    assert Access("DICOMFS").refusal("CT1", "DICOMFS", "127.0.0.1") is not None


def test_open_lets_everybody_in_who_calls_us_by_our_title() -> None:
    access = Access("DICOMFS", LIST, is_open=True)
    assert access.refusal("STRANGER", "DICOMFS", "203.0.113.9") is None
    refusal = access.refusal("STRANGER", "PACS", "203.0.113.9")
    assert (refusal and (refusal.result, refusal.source, refusal.diagnostic)) == (1, 1, 7)


def test_the_called_title_may_be_left_unchecked() -> None:
    assert Access("DICOMFS", LIST, require_called_ae=False).refusal("CT1", "PACS", "10.1.2.3") is None


@pytest.mark.parametrize("title", ["A\nERROR forged", "A\x1b[31m", "\u2028next line", "É" * 40])
def test_reasons_are_one_plain_line(title: str) -> None:
    access = Access("DICOMFS", LIST)
    for refusal in (access.refusal(title, "DICOMFS", "10.1.2.3"), access.refusal("CT1", title, "10.1.2.3")):
        assert refusal is not None
        assert refusal.reason.isascii()
        assert refusal.reason.isprintable()


# Places


def test_one_sender_cannot_take_every_place() -> None:
    admission = Admission(PeerLimits(total=5, per_address=2))
    assert [admission.admit("10.0.0.1") for _ in range(2)] == [None, None]
    refusal = admission.admit("::ffff:10.0.0.1")
    assert meaning(refusal) == (
        "Rejected (Transient)",
        "DUL service-provider (presentation related)",
        "Local limit exceeded",
    )
    assert refusal is not None
    assert "10.0.0.1 has 2" in refusal.reason
    assert admission.admit("10.0.0.2") is None
    admission.leave("10.0.0.1")
    assert admission.admit("10.0.0.1") is None
    assert admission.total == 3


def test_all_together_have_a_limit_too() -> None:
    admission = Admission(PeerLimits(total=3, per_address=2))
    for address in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        assert admission.admit(address) is None
    refusal = admission.admit("10.0.0.4")
    assert (refusal and (refusal.result, refusal.source, refusal.diagnostic)) == (2, 3, 2)
    admission.leave("10.0.0.2")
    assert admission.admit("10.0.0.4") is None


def test_who_was_refused_has_taken_nothing() -> None:
    admission = Admission(PeerLimits(total=1, per_address=1))
    assert admission.admit("10.0.0.1") is None
    assert admission.admit("10.0.0.1") is not None
    assert admission.admit("10.0.0.2") is not None
    admission.leave("10.0.0.1")
    assert admission.total == 0
    for address in ("10.0.0.1", "10.0.0.2"):
        with pytest.raises(ValueError, match="nobody is in"):
            admission.leave(address)


def test_places_are_counted_rightly_by_many_threads() -> None:
    admission = Admission(PeerLimits(total=12, per_address=3))
    most = {"10.0.0.1": 0, "10.0.0.2": 0}
    inside = dict.fromkeys(most, 0)
    lock = threading.Lock()

    def come_and_go(address: str) -> None:
        for _ in range(300):
            if admission.admit(address) is None:
                with lock:
                    inside[address] += 1
                    most[address] = max(most[address], inside[address])
                with lock:
                    inside[address] -= 1
                admission.leave(address)

    threads = [threading.Thread(target=come_and_go, args=(address,)) for address in [*most] * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert admission.total == 0
    assert max(most.values()) <= 3


def test_mapped_networks_are_those_of_ipv4() -> None:
    assert allowed("A@::ffff:10.0.0.0/104").network == IPv4Network("10.0.0.0/8")
    assert allowed("A@::/8").network == IPv6Network("::/8")
