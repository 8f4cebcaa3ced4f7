"""smb.conf for a mount, and the private smbd of the loopback demo.

Generates text and prepares a scratch folder; never starts, watches or stops a process, never touches
the Samba of the system. `dicomfs samba-config` prints what `configuration` returns; `dicomfs serve` runs
what `prepare` returns. Each setting of a share was measured or learned from a failure: the reason is
written above it, in the file that an administrator reads.
"""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dicomfs.errors import UsageError

_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MODULE_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/samba/lib")
_MODULE_PATTERNS = ("samba/vfs/{}.so", "*/samba/vfs/{}.so", "vfs/{}.so")
_DIRECTORY_LEASES_SINCE = (4, 22)
_LONGEST_FOLDER_BYTES = 70
"""smbd makes sockets below its folders, and a socket's path ends at 107 bytes."""

_RESERVED_SHARES = frozenset({"global", "homes", "printers", "print$", "ipc$"})
_FORBIDDEN_IN_SHARE = frozenset('%<>*?|/\\+=;:",[]')  # smb.conf(5), section titles and `invalid netname`
_VETOED = (
    "/desktop.ini/Thumbs.db/ehthumbs.db/ehthumbs_vista.db/autorun.inf/.DS_Store/._*/.AppleDouble"
    "/.Spotlight-V100/.Trashes/.fseventsd/.TemporaryItems/.metadata_never_index*/.hidden/.directory/"
)


@dataclass(frozen=True, slots=True)
class _Setting:
    name: str
    value: str
    why: str = ""


_NO_PRINTERS = (
    _Setting("load printers", "no", "No printers, no shares made by users."),
    _Setting("printing", "bsd"),
    _Setting("printcap name", "/dev/null"),
    _Setting("disable spoolss", "yes"),
    _Setting("usershare max shares", "0"),
)

_SHORT_REPLIES = _Setting(
    "smb2 max trans",
    "65536",
    "A listing comes some 450 names at a time. Clients may ask for 8 MB, all of a folder in one reply, and\n"
    "wait for the size of its last picture. Not less: whoever watches a folder may ask for 64 kB.",
)

_GLOBALS = (
    _Setting("server role", "standalone server", "In a domain: member server, and its realm."),
    _Setting("disable netbios", "yes", "One port, no name broadcasts; nmbd is not needed."),
    _Setting("smb ports", "445"),
    _Setting(
        "server min protocol",
        "SMB3_00",
        "Windows 8, macOS 10.10, Linux 3.12 and later. Older dialects cannot be protected.",
    ),
    _Setting("server signing", "mandatory", "Nobody on the way changes an image."),
    _Setting(
        "server smb encrypt",
        "required",
        "Nobody on the way reads one. `desired` lets in clients that cannot encrypt.",
    ),
    _Setting("ntlm auth", "ntlmv2-only", "The older answers to a challenge are as good as the password."),
    _Setting("map to guest", "never", "A wrong name or password is refused, not turned into a guest."),
    _Setting("restrict anonymous", "2", "No lists of shares or users without a password."),
    _SHORT_REPLIES,
    *_NO_PRINTERS,
)


@dataclass(frozen=True, slots=True)
class PreparedSmbd:
    """All that a supervisor needs to run the private smbd.

    Start `argv` with exactly `env`, as the leader of a process group of its own (when it ends, it ends
    its whole group), and with a *pipe* on its standard input that the supervisor holds open: smbd ends
    by itself when the pipe closes, even if the supervisor was killed. It is ready when `port` answers on
    127.0.0.1.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    config: Path
    log: Path
    """What smbd has to say (also when it refuses to start)."""
    port: int
    share_name: str
    close_share: tuple[str, ...]
    """Command that makes clients connect to the share anew; empty when smbcontrol is not installed. To be
    run when the mount was restarted: their sessions hold the old one, and watch nothing."""


def glusterfs_fuse_available(folders: Iterable[str | Path] = _MODULE_FOLDERS) -> bool:
    """Whether Samba's module `glusterfs_fuse` is installed below one of the library folders.

    The module asks the file system for the true spelling of a name (getxattr
    `glusterfs.get_real_filename:NAME`) where smbd would otherwise read the whole folder.
    """
    patterns = [pattern.format("glusterfs_fuse") for pattern in _MODULE_PATTERNS]
    return any(next(Path(folder).glob(pattern), None) for folder in folders for pattern in patterns)


def samba_version(smbd: str | None = None) -> tuple[int, int] | None:
    """Major and minor version of the installed smbd; None when there is none or it does not say."""
    found = smbd or _which_smbd()
    if found is None:
        return None
    try:
        said = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    numbers = said.stdout.removeprefix("Version ").split(".")
    if len(numbers) < 2 or not (numbers[0].isdecimal() and numbers[1].isdecimal()):
        return None
    return int(numbers[0]), int(numbers[1])


def configuration(
    name: str,
    path: Path,
    *,
    has_glusterfs_fuse: bool,
    valid_users: str = "@radiology",
    version: tuple[int, int] | None = None,
    for_macs: bool = False,
) -> str:
    """Globals and share in one text, fit for `include = …` at the end of /etc/samba/smb.conf."""
    share = share_definition(
        name, path, has_glusterfs_fuse=has_glusterfs_fuse, valid_users=valid_users, for_macs=for_macs
    )
    return f"{global_definition(version=version, for_macs=for_macs)}\n{share}"


def global_definition(*, version: tuple[int, int] | None = None, for_macs: bool = False) -> str:
    """Hardened `[global]` section.

    `version` is that of the Samba it is for: a setting that an older one does not know is written as a
    comment, because an unknown setting is a warning on every start.
    """
    leases = (
        "Names appear while a folder is open; clients that hold a lease on it would not see them for\n"
        "minutes."
    )
    lines = ["[global]"]
    lines += _lines(_GLOBALS)
    if for_macs:
        lines += _lines([_Setting("fruit:aapl", "yes", "Macs: the Apple extensions of SMB.")])
    if version is not None and version >= _DIRECTORY_LEASES_SINCE:
        lines += _lines([_Setting("smb3 directory leases", "no", leases)])
    else:
        lines += _comment(f"{leases}\nSamba 4.22 and later only: take the # away there.")
        lines += ["    # smb3 directory leases = no", ""]
    return _text(lines)


def share_definition(
    name: str,
    path: Path,
    *,
    has_glusterfs_fuse: bool,
    valid_users: str = "@radiology",
    for_macs: bool = False,
) -> str:
    """A share of the mount at `path`; each setting bears its reason as a comment.

    Raises UsageError when the name, the path or the users cannot be written in an smb.conf.
    """
    _check_share_name(name)
    _check_plain("valid users", valid_users)
    access = [
        _Setting("comment", "Medical images, rendered on demand"),
        _Setting("path", _smb_path(path), "Where dicomfs is mounted."),
        _Setting(
            "valid users",
            valid_users,
            "Who may look. The mount decides as well: its options allow_other, gid=, umask= must let the\n"
            "same people in.",
        ),
        _Setting("guest ok", "no", "Patients' names and images: never without a password."),
    ]
    settings = access + _behaviour(has_glusterfs_fuse=has_glusterfs_fuse, for_macs=for_macs)
    return _text([f"[{name}]", *_lines(settings)])


def prepare(
    folder: Path,
    share_path: Path,
    port: int,
    share_name: str = "dicomfs",
    *,
    smbd: str | None = None,
    has_glusterfs_fuse: bool | None = None,
) -> PreparedSmbd:
    """Write configuration and state folders of a private smbd into `folder`; start nothing.

    It listens on 127.0.0.1 only, knows no users, and shows `share_path` read-only to whoever connects, as
    the user that runs it: root or not makes no difference. Ports below 1024 need root. `folder` is created
    when missing, becomes private (0700) and holds all that smbd ever writes.

    Raises UsageError when smbd is not installed or a value cannot be used.
    """
    found = smbd or _which_smbd()
    if found is None:
        raise UsageError("smbd is not installed (Debian, Ubuntu: apt install samba)")
    if not 0 < port < 65536:
        raise UsageError(f"SMB port {port}: must be between 1 and 65535")
    _check_share_name(share_name)
    folder = folder.resolve()
    if len(os.fsencode(folder)) > _LONGEST_FOLDER_BYTES:
        raise UsageError(
            f"{folder}: too long a path for smbd's sockets, at most {_LONGEST_FOLDER_BYTES} bytes"
        )
    if has_glusterfs_fuse is None:
        has_glusterfs_fuse = glusterfs_fuse_available()

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    settings = _private_globals(folder, port)
    share = [
        _Setting("path", _smb_path(share_path)),
        _Setting("guest ok", "yes"),
        _Setting("guest only", "yes"),
        *_behaviour(has_glusterfs_fuse=has_glusterfs_fuse, for_macs=False),
    ]
    text = _text(["[global]", *_bare(settings), f"[{share_name}]", *_bare(share)])
    config = folder / "smb.conf"
    config.write_text(text, encoding="utf-8")
    control = _which("smbcontrol")
    return PreparedSmbd(
        argv=(
            found,
            "--foreground",
            "--no-process-group",  # it would insist on making a session, which the leader of a group cannot
            f"--configfile={config}",
            f"--log-basename={folder}",
        ),
        env={"PATH": _SEARCH_PATH, "LANG": "C.UTF-8", "HOME": str(folder), "TMPDIR": str(folder)},
        config=config,
        log=folder / "log.smbd",
        port=port,
        share_name=share_name,
        close_share=(control, f"--configfile={config}", "smbd", "close-share", share_name) if control else (),
    )


def _behaviour(*, has_glusterfs_fuse: bool, for_macs: bool) -> list[_Setting]:
    """How smbd treats a mount of ours, whoever may see it."""
    modules = ["fruit", "streams_xattr"] if for_macs else []
    settings = [
        _Setting("read only", "yes", "The mount refuses every write; clients learn it at once."),
        _Setting(
            "mangled names",
            "no",
            "Every name is legal on Windows already: no 8.3 names, which cost a scan of the folder.",
        ),
        _Setting("store dos attributes", "no", "Each of these four costs a call per listed file."),
        _Setting("ea support", "no"),
        _Setting("nt acl support", "no"),
        _Setting("map archive", "no"),
        _Setting(
            "veto files",
            _VETOED,
            "What file browsers look for everywhere is not here: answered without asking the mount.\n"
            "dicomfs never gives such a name to a patient, an exam or an image.",
        ),
    ]
    if for_macs:
        settings += [
            _Setting("fruit:metadata", "stream", "Macs: no ._ files beside the images."),
            _Setting("fruit:resource", "stream"),
            _Setting("fruit:nfs_aces", "no"),
            _Setting("fruit:veto_appledouble", "yes"),
        ]
    if has_glusterfs_fuse:
        modules.append("glusterfs_fuse")
        why = (
            "The mount answers how a name is really spelled. Without this module smbd reads the whole\n"
            "folder for each name that is missing or in another case. (No GlusterFS is involved.)"
        )
    else:
        why = (
            "vfs objects = glusterfs_fuse belongs here, but the module is not installed (Debian:\n"
            "samba-vfs-modules). All works without it; missing names are slow in large folders."
        )
    if modules:
        settings.append(_Setting("vfs objects", " ".join(modules), why))
    else:
        settings[-1] = _Setting(settings[-1].name, settings[-1].value, f"{settings[-1].why}\n\n{why}")
    return settings


def _private_globals(folder: Path, port: int) -> list[_Setting]:
    """State below `folder`, loopback only, guests only; makes the folders that smbd expects."""
    settings = [
        _Setting("server role", "standalone server"),
        _Setting("interfaces", "127.0.0.1/8"),
        _Setting("bind interfaces only", "yes"),
        _Setting("smb ports", str(port)),
        _Setting("disable netbios", "yes"),
        _Setting("server min protocol", "SMB3_00"),
        _Setting("map to guest", "bad user"),
        _Setting("guest account", pwd.getpwuid(os.geteuid()).pw_name),
        _SHORT_REPLIES,
        *_NO_PRINTERS,
        _Setting("logging", "file"),
        _Setting("log level", "0"),
        # The helpers would outlive smbd. All that is lost is the list of shares; there is only one.
        _Setting("rpc start on demand helpers", "no"),
        _Setting("max log size", "1000"),
    ]
    for name, part, mode in (
        ("lock directory", "lock", 0o755),  # smbd insists on the modes of these folders
        ("state directory", "state", 0o755),
        ("cache directory", "cache", 0o755),
        ("pid directory", "pid", 0o755),
        ("private dir", "private", 0o700),
        ("ncalrpc dir", "ncalrpc", 0o755),
    ):
        place = folder / part
        place.mkdir(exist_ok=True)
        place.chmod(mode)
        settings.append(_Setting(name, _smb_path(place)))
    passwords = _smb_path(folder / "private" / "passdb.tdb")
    return [*settings, _Setting("passdb backend", f"tdbsam:{passwords}")]


def _which_smbd() -> str | None:
    return _which("smbd")


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:{_SEARCH_PATH}")


def _check_share_name(name: str) -> None:
    if not name or name.strip() != name or len(name) > 80 or name.lower() in _RESERVED_SHARES:
        raise UsageError(
            f"share name {name!r}: 1 to 80 characters, not one of {', '.join(sorted(_RESERVED_SHARES))}"
        )
    if not name.isprintable() or _FORBIDDEN_IN_SHARE & set(name):
        raise UsageError(f"share name {name!r}: none of {' '.join(sorted(_FORBIDDEN_IN_SHARE))}")


def _check_plain(what: str, value: str) -> None:
    """smb.conf(5) knows no escapes: a value that would need one cannot be written."""
    if not value.isprintable() or value.strip() != value or not value or value.endswith("\\") or '"' in value:
        raise UsageError(f"{what} {value!r}: cannot be written in an smb.conf")


def _smb_path(path: Path) -> str:
    text = str(path)
    if not path.is_absolute():
        raise UsageError(f"path {text!r}: must be absolute in an smb.conf")
    if "%" in text:
        raise UsageError(f"path {text!r}: Samba would replace what follows the %; use a path without one")
    _check_plain("path", text)
    return text


def _lines(settings: Iterable[_Setting]) -> list[str]:
    """Settings with their reasons; a blank line between groups."""
    lines: list[str] = []
    for setting in settings:
        if setting.why:
            lines += ["", *_comment(setting.why)]
        lines.append(f"    {setting.name} = {setting.value}")
    return [*lines, ""]


def _bare(settings: Iterable[_Setting]) -> list[str]:
    return [f"    {setting.name} = {setting.value}" for setting in settings]


def _comment(text: str) -> list[str]:
    return [f"    # {line}".rstrip() for line in text.splitlines()]


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines).rstrip("\n") + "\n"
