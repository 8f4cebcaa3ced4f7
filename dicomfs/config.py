"""Options and the configuration file -> frozen values. An unknown key is an error that names the valid ones.

The same names serve `-o name=value`, `/etc/fstab` and the TOML file. Reads nothing but the file it is
given; only `cli.py` calls it.
"""

import grp
import os
import pwd
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeVar

from dicomfs.errors import UsageError
from dicomfs.recipes import FORMATS as RENDERED
from dicomfs.recipes import LABEL_LENGTH, policy
from dicomfs.scpoptions import ScpOptions, scp_table
from dicomfs.selection import ANY, Since, modalities
from dicomfs.spelling import DEFAULT_DATE_FORMAT, DateFormat, Label, Layout
from dicomfs.values import bounded_size
from dicomfs.values import size as _size
from dicomfs.values import switch as _flag
from dicomfs.values import whole as _whole

DEFAULT_STORE: Final = Path("/var/lib/dicomfs")
STORE_VARIABLE: Final = "DICOMFS_STORE"

FORMATS: Final = (*RENDERED, "dcm")
"""What `formats=` may list."""
MOST_FRAMES: Final = 16_000
"""Upper bound of `frames=`: a frame number has 14 bits of the inode."""

MOST_DIGITS: Final = 6
"""Upper bound of `pad=`: as many as the budget of a path has for a number."""

SMALLEST_DISK_CACHE: Final = 256 * 1024**2
"""A smaller one would have no room for a single large picture (a 64th of it is the largest that is taken)."""

MOST_WINDOWS: Final = 8
"""Sibling views of one format: the number of a window has 3 bits of the inode."""

_IGNORED: Final = frozenset(
    # What mount(8), fstab and systemd add, and what is always true of this file system.
    [
        *("ro", "rw", "defaults", "auto", "noauto", "user", "nouser", "users", "nosuid", "suid", "nodev"),
        *("dev", "noexec", "exec", "noatime", "atime", "relatime", "norelatime", "nodiratime", "diratime"),
        *("async", "_netdev", "nofail"),
    ]
)


def _account(find: Callable[[str], int], what: str) -> Callable[[str], int]:
    """A number, or the name of a user or group of this machine."""

    def parse(text: str) -> int:
        if re.fullmatch(r"\d{1,10}", text.strip()):
            return _whole(0, 2**32 - 2)(text)
        try:
            return find(text.strip())
        except KeyError:
            raise ValueError(f"the name or number of a {what} of this machine") from None

    return parse


def _formats(text: str) -> tuple[str, ...]:
    wanted = tuple(dict.fromkeys(text.lower().split("+")))
    if not wanted or any(name not in FORMATS for name in wanted):
        raise ValueError(f"one or several of {', '.join(FORMATS)}, joined by +, such as jpg+dcm")
    return wanted


def _windows(text: str) -> tuple[str, ...]:
    wanted = tuple(dict.fromkeys(policy(part).text for part in text.split("+")))
    if len(wanted) > MOST_WINDOWS:
        raise ValueError(f"at most {MOST_WINDOWS} windows")
    long = next((one for one in wanted if len(policy(one).label) > LABEL_LENGTH), None)
    if len(wanted) > 1 and long is not None:
        raise ValueError(
            f"{long} is too long for the name of a folder, which several windows have: fewer digits"
        )
    return wanted


def _folder(text: str) -> Path | None:
    if not text.strip():
        return None
    path = Path(text.strip())
    if not path.is_absolute():
        raise ValueError("a folder, from the root on, such as /var/cache/dicomfs")
    return path


def _mask(text: str) -> int:
    if not re.fullmatch(r"0?[0-7]{1,3}", text.strip()):
        raise ValueError("an octal mask such as 027")
    return int(text, 8)


E = TypeVar("E", bound=Enum)


def _one_of(kind: type[E]) -> Callable[[str], E]:
    """A parser of one of a few words."""

    def parse(text: str) -> E:
        try:
            return kind(text.strip().lower())
        except ValueError:
            raise ValueError(f"one of {', '.join(str(item.value) for item in kind)}") from None

    return parse


_USER: Final = _account(lambda name: pwd.getpwnam(name).pw_uid, "user")
_GROUP: Final = _account(lambda name: grp.getgrnam(name).gr_gid, "group")


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Options of `dicomfs mount -o`; the defaults are what a clinic would choose."""

    formats: tuple[str, ...] = field(
        default=("jpg",),
        metadata={"parse": _formats, "help": ", ".join(FORMATS) + "; several joined by +: a folder each"},
    )
    layout: Layout = field(
        default=Layout.PATIENT_DATE,
        metadata={"parse": _one_of(Layout), "help": "patient/date, or date/patient"},
    )
    label: Label = field(
        default=Label.NAME,
        metadata={"parse": _one_of(Label), "help": "patients' folders are called by name, name-id or id"},
    )
    date_format: DateFormat = field(
        default_factory=DateFormat,
        metadata={
            "parse": DateFormat,
            "help": f"how dates are written: {DEFAULT_DATE_FORMAT}; %b, %B: months by name",
        },
    )
    pad: int = field(
        default=0,
        metadata={"parse": _whole(0, MOST_DIGITS), "help": "digits that numbers are filled up to with zeros"},
    )
    modality: tuple[str, ...] = field(
        default=(ANY,),
        metadata={"parse": modalities, "help": "show only these, such as MR+XA"},
    )
    since: Since = field(
        default_factory=Since,
        metadata={
            "parse": lambda text: Since(text.strip().lower()),
            "help": "show only exams since 30d, 4w, 6m, 1y ago, or since a date such as 2024-01-31",
        },
    )
    frames: int = field(
        default=1000,
        metadata={"parse": _whole(1, MOST_FRAMES), "help": "most frames of one image that become files"},
    )
    quality: int = field(default=90, metadata={"parse": _whole(1, 100), "help": "JPEG quality, 1 to 100"})
    window: tuple[str, ...] = field(
        default=("auto",),
        metadata={
            "parse": _windows,
            "help": "auto, header, full, or centre/width such as 40/400; several joined by +: a folder each",
        },
    )
    max_size: int = field(
        default=0,
        metadata={"parse": _whole(0, 65_535), "help": "scale down to so many pixels; 0: as large as it is"},
    )
    square: bool = field(
        default=True, metadata={"parse": _flag, "help": "on: pixels that are not square are made so; off"}
    )
    overlays: bool = field(default=True, metadata={"parse": _flag, "help": "on: draw overlay planes; off"})
    shutters: bool = field(
        default=True, metadata={"parse": _flag, "help": "on: cover what is outside a display shutter; off"}
    )
    subtraction: bool = field(
        default=True,
        metadata={"parse": _flag, "help": "on: subtract the mask if the header asks for it; off"},
    )
    marks: bool = field(
        default=False, metadata={"parse": _flag, "help": "on: write laterality and lossy compression; off"}
    )
    cache: int = field(
        default=256 * 1024**2, metadata={"parse": _size, "help": "memory for rendered pictures, such as 256M"}
    )
    disk_cache: Path | None = field(
        default=None,
        metadata={
            "parse": _folder,
            "help": "keep pictures in this folder too, over restarts; empty: nowhere",
        },
    )
    disk_cache_size: int = field(
        default=10 * 1024**3,
        metadata={
            "parse": bounded_size(SMALLEST_DISK_CACHE, 1 << 50),
            "help": "most that is kept there, such as 10G",
        },
    )
    workers: int = field(
        default=0, metadata={"parse": _whole(0, 64), "help": "render processes; 0: one per processor"}
    )
    memory: int = field(
        default=2 * 1024**3,
        metadata={"parse": _size, "help": "most memory of one render process, such as 2G"},
    )
    time_limit: int = field(
        default=60, metadata={"parse": _whole(1, 3600), "help": "most seconds for one picture"}
    )
    warm: bool = field(
        default=True, metadata={"parse": _flag, "help": "on: render new images soon after arrival; off"}
    )
    live: bool = field(
        default=True,
        metadata={"parse": _flag, "help": "on: whoever watches a folder is told of what is new in it; off"},
    )
    uid: int = field(
        default_factory=os.getuid, metadata={"parse": _USER, "help": "owner of all files, by name or number"}
    )
    gid: int = field(
        default_factory=os.getgid, metadata={"parse": _GROUP, "help": "group of all files, by name or number"}
    )
    umask: int = field(
        default=0o027, metadata={"parse": _mask, "help": "permissions taken away, such as 022"}
    )
    allow_other: bool = field(
        default=False, metadata={"parse": _flag, "help": "let other local users in, as far as umask allows"}
    )


def option_help() -> list[tuple[str, str]]:
    """Every mount option with its explanation, for `--help`."""
    return [(item.name, str(item.metadata["help"])) for item in fields(MountOptions)]


def mount_options(texts: Iterable[str], base: MountOptions | None = None) -> MountOptions:
    """Parse the values of `-o` in order; later ones win. Raises UsageError naming option and remedy."""
    options = base or MountOptions()
    for text in texts:
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            name, _, value = part.partition("=")
            if name in _IGNORED or name.startswith(("x-", "comment")):
                continue
            options = _with_option(options, name, value if "=" in part else None)
    return options


def _with_option(options: MountOptions, name: str, value: str | None) -> MountOptions:
    known = {item.name: item for item in fields(MountOptions)}
    if name not in known:
        raise UsageError(f"unknown mount option '{name}'; valid ones are: {', '.join(known)}")
    parse = known[name].metadata["parse"]
    if value is None and parse is not _flag:
        raise UsageError(f"mount option '{name}' needs a value: {name}=… ({known[name].metadata['help']})")
    try:
        return replace(options, **{name: parse(value or "")})
    except ValueError as error:
        raise UsageError(f"mount option '{name}' does not take '{value}': it needs {error}") from None


@dataclass(frozen=True, slots=True)
class Settings:
    """The configuration file: where the store is, how to receive, how to mount."""

    store: Path = DEFAULT_STORE
    scp: ScpOptions = field(default_factory=ScpOptions)
    mount: MountOptions = field(default_factory=MountOptions)


def load(path: Path | None, environment: Mapping[str, str]) -> Settings:
    """Read the configuration file, if one is named, and the environment.

    Raises UsageError for a file that cannot be read, an unknown key (naming the valid ones) or a wrong value.
    """
    settings = Settings()
    if path is not None:
        try:
            tables = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not a TOML file: {error}") from error
        settings = _from_tables(tables, path)
    if store := environment.get(STORE_VARIABLE):
        settings = replace(settings, store=Path(store))
    return settings


def _from_tables(tables: dict[str, Any], path: Path) -> Settings:
    _only_known(tables, ("store", "scp", "mount"), f"{path}")
    for name in ("scp", "mount"):
        if not isinstance(tables.get(name, {}), dict):
            raise UsageError(f"{path}: '{name}' must be a table: [{name}]")
    scp = scp_table(tables.get("scp", {}), f"{path} [scp]")
    options = MountOptions()
    for name, value in tables.get("mount", {}).items():
        if isinstance(value, list):
            text = "+".join(str(item) for item in value)
        elif isinstance(value, bool):
            text = "on" if value else "off"
        else:
            text = str(value)
        try:
            options = _with_option(options, name, text)
        except UsageError as error:
            raise UsageError(f"{path} [mount]: {error}") from None
    store = tables.get("store", str(DEFAULT_STORE))
    if not isinstance(store, str):
        raise UsageError(f"{path}: 'store' needs a path in quotes")
    return Settings(Path(store), scp, options)


def _only_known(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    known = list(known)
    for name in table:
        if name not in known:
            raise UsageError(f"{where}: unknown key '{name}'; valid ones are: {', '.join(known)}")
