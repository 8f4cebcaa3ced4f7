"""The command line: the only module that loads configuration, prints, logs to the console and exits."""

import argparse
import contextlib
import gc
import json
import logging
import logging.handlers
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dicomfs import (
    __version__,
    forgetting,
    importer,
    maintenance,
    offline,
    samba,
    scp,
    serve,
    service,
    statuscommand,
)
from dicomfs import mount as mounting
from dicomfs.activity import Activity
from dicomfs.association import Limits
from dicomfs.commitmentservice import CommitmentService
from dicomfs.config import STORE_VARIABLE, Settings, load, mount_options, option_help
from dicomfs.errors import DicomfsError, MountRefused, StoreError, StoreFull, UsageError
from dicomfs.ingest import Ingest
from dicomfs.model import Stored
from dicomfs.peers import address_book
from dicomfs.reporter import Reporter as ResultReporter
from dicomfs.runfile import Process, Reporter
from dicomfs.scpoptions import (
    Flag,
    ScpOptions,
    access,
    for_this_machine,
    import_flags,
    scp_arguments,
    scp_flags,
    scp_options,
)
from dicomfs.tls import Certificates, calling_context

# Every exit code. Scripts and units rely on them.
OK: Final = 0
FAILED: Final = 1
"""It could not be done, or a bug."""
USAGE: Final = 2
"""The command, an option or the configuration is wrong."""
SOME_REFUSED: Final = 3
"""`import`, `render`: a DICOM object was refused or cannot be shown, or there was none."""
STORE_FULL: Final = 4
STORE_TROUBLE: Final = 5
"""The store is of another version, is none, or cannot be used now."""
MOUNT_REFUSED: Final = 6
ALARM: Final = 7
"""`status --check`, `scrub`, `reindex`: somebody has to see to something."""
EXIT_CODES: Final[dict[type[DicomfsError], int]] = {
    MountRefused: MOUNT_REFUSED,
    UsageError: USAGE,
    StoreFull: STORE_FULL,
    StoreError: STORE_TROUBLE,
    DicomfsError: FAILED,
}

MOUNT_HELPER_LIMIT_S: Final = 60.0
SYSLOG_VARIABLE: Final = "DICOMFS_SYSLOG"
"""Set for a mount that mount(8) leaves behind: there is nobody to read its standard error."""
CONSOLE: Final = "dicomfs console"
SYSLOG_SOCKET: Final = Path("/dev/log")

log = logging.getLogger("dicomfs.cli")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _log_to_console(verbose=options.verbose, quiet=options.quiet)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries' warnings may quote a data set
    service.end_with_parent(os.environ)
    try:
        settings = load(options.config, os.environ)
        if options.store is not None:
            settings = replace(settings, store=options.store)
        run: Callable[[argparse.Namespace, Settings], int] = options.run
        return run(options, settings)
    except DicomfsError as error:
        _complain(str(error))
        return _exit_code(error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # `dicomfs status | head`: nobody reads on, and that is no error.
        sys.stdout = None  # so that the interpreter does not flush it at exit
        return OK


def _exit_code(error: DicomfsError) -> int:
    return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))


def _complain(text: str) -> None:
    print(f"dicomfs: {text}", file=sys.stderr)


def _log_to_console(*, verbose: bool, quiet: bool) -> None:
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handler: logging.Handler
    if SYSLOG_VARIABLE in os.environ and SYSLOG_SOCKET.exists():
        handler = logging.handlers.SysLogHandler(
            str(SYSLOG_SOCKET), logging.handlers.SysLogHandler.LOG_DAEMON
        )
        handler.setFormatter(
            logging.Formatter(f"dicomfs[{os.getpid()}]: %(levelname)s %(name)s: %(message)s")
        )
    elif sys.stderr.isatty():
        handler = RichHandler(console=Console(stderr=True), show_path=False)
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    else:
        handler = logging.StreamHandler()
        # Under systemd the journal has its own clock.
        stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
        handler.setFormatter(logging.Formatter(f"{stamp}%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("dicomfs")
    handler.set_name(CONSOLE)
    for former in [h for h in root.handlers if h.get_name() == CONSOLE]:
        root.removeHandler(former)  # of an earlier call in this process: its stream may be closed
    root.addHandler(handler)
    root.setLevel(level)


# Arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dicomfs",
        description="Receive DICOM images; browse them as pictures in folders, rendered on demand.",
        epilog=f"The store is --store, else ${STORE_VARIABLE}, else that of --config, else /var/lib/dicomfs. "
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 objects refused or none found (import), 4 no space, "
        "5 trouble with the store, 6 mount refused, 7 somebody has to see to something (status --check, "
        "scrub, reindex).",
    )
    parser.add_argument("--version", action="version", version=f"dicomfs {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--store", type=Path, metavar="DIR", help="where originals and index are kept")
    common.add_argument("--config", type=Path, metavar="FILE", help="TOML file with the same options")
    common.add_argument("-v", "--verbose", action="store_true", help="log more")
    common.add_argument("-q", "--quiet", action="store_true", help="log warnings and errors only")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(
        name: str, run: Callable[[argparse.Namespace, Settings], int], text: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, parents=[common], help=text, description=text)
        command.set_defaults(run=run)
        return command

    receive = add("scp", _scp, "Receive images (C-STORE) until stopped.")
    _add_flags(receive, scp_flags())

    mount = add("mount", _mount, "Show the store as folders of pictures, until unmounted or stopped.")
    mount.formatter_class = argparse.RawDescriptionHelpFormatter
    mount.epilog = _options_text()
    mount.add_argument("mountpoint", type=Path, help="an empty folder")
    _add_mount(mount)

    take_in = add("import", _import, "Take in DICOM files from disk, the same way as received ones.")
    take_in.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files or folders")
    take_in.add_argument("--json", action="store_true", help="print the summary as JSON")
    _add_flags(take_in, import_flags())

    render = add(
        "render", _render, "Write pictures of DICOM files, as a mount of exactly these would show them."
    )
    render.formatter_class = argparse.RawDescriptionHelpFormatter
    render.epilog = _options_text()
    render.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files or folders")
    render.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the folders go")
    _add_mount(render)

    together = add("serve", _serve, "Receive and mount in one command, with a private smbd if asked.")
    together.formatter_class = argparse.RawDescriptionHelpFormatter
    together.epilog = _options_text()
    together.add_argument("--mount", type=Path, metavar="DIR", required=True, help="an empty folder")
    together.add_argument(
        "--samba-port",
        type=int,
        metavar="N",
        help="also share the mount on this port of 127.0.0.1, to guests",
    )
    _add_flags(together, scp_flags())
    _add_mount(together)

    look = add("status", _status, "What is received and refused, what the store holds, and alarms.")
    statuscommand.add_arguments(look)

    leave = add(
        "forget", _forget, "Take patients, exams or images out of the store; their originals are kept aside."
    )
    forgetting.add_arguments(leave)

    check = add("scrub", _scrub, "Check every original: is it there, and is it what was received?")
    maintenance.add_scrub_arguments(check)

    rebuild = add(
        "reindex",
        _reindex,
        "Rebuild a lost, damaged or outdated index from the archive; nothing else may run.",
    )
    rebuild.add_argument("--json", action="store_true", help="print the summary as JSON")

    share = add("samba-config", _samba_config, "Print the Samba configuration that shares a mount.")
    share.add_argument("mountpoint", type=Path, help="where dicomfs is mounted")
    share.add_argument("--name", default="dicom", help="name of the share")
    share.add_argument("--valid-users", default="@radiology", help="who may look (smb.conf syntax)")
    share.add_argument("--macs", action="store_true", help="with the extensions that Macs like")
    share.add_argument("--share-only", action="store_true", help="leave out the [global] section")
    return parser


def _add_flags(command: argparse.ArgumentParser, flags: Iterable[Flag]) -> None:
    for flag in flags:
        text = flag.help.replace("%", "%%")
        if not flag.metavar:
            command.add_argument(
                flag.word, action=argparse.BooleanOptionalAction, default=None, dest=flag.name, help=text
            )
        else:
            action = "append" if flag.is_list else "store"
            command.add_argument(flag.word, action=action, dest=flag.name, metavar=flag.metavar, help=text)


def _add_mount(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-o", action="append", default=[], dest="options", metavar="OPT[,OPT=VALUE]", help="mount options"
    )


def _options_text() -> str:
    lines = [f"  {name:12} {text}" for name, text in option_help()]
    return "\n".join(["mount options (-o):", *lines])


# Commands


def _with_scp(options: argparse.Namespace, settings: Settings) -> Settings:
    words = vars(options)
    given = {flag.name: words[flag.name] for flag in scp_flags() if words.get(flag.name) is not None}
    return replace(settings, scp=scp_options(given, settings.scp))


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], None]]:
    """Gives a function that waits for SIGTERM or SIGINT; a second one ends the process at once.

    Blocked in every thread and taken with sigwait: a handler could be called for a signal that the
    kernel gave to another thread only when the main thread next wakes up, which it has no reason to.
    """
    stops = {signal.SIGTERM, signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)

    def wait() -> None:
        signal.sigwait(stops)
        for number in stops:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        yield wait
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _scp(options: argparse.Namespace, settings: Settings) -> int:
    # Only here: a mount answers the sooner without pynetdicom.

    chosen = _with_scp(options, settings).scp
    service.raise_descriptor_limit()
    # Before the store: a receiver that cannot start makes none.
    who, certificates, activity = access(chosen), _certificates(chosen), Activity()
    with (
        _stop_signals() as wait_for_stop,
        Ingest.open(settings.store, chosen.duplicates, chosen.min_free.of) as ingest,
        CommitmentService(settings.store, _reporter(chosen)) as commitment,
    ):
        server = scp.StorageSCP.start(
            chosen.host,
            chosen.port,
            chosen.aet,
            ingest,
            access=who,
            certificates=certificates,
            activity=activity,
            commitment=commitment,
            limits=Limits(
                associations=chosen.max_associations,
                of_one_address=chosen.max_associations_per_peer,
                pdu_bytes=chosen.max_pdu,
                object_bytes=chosen.max_object,
                handshake_s=chosen.acse_seconds,
                idle_s=chosen.idle_seconds,
                stall_s=chosen.dimse_seconds,
            ),
        )
        _tell_who_may_send(chosen)
        min_free = chosen.min_free.of(shutil.disk_usage(settings.store).total)
        process = Process(os.getpid(), time.time(), chosen.aet, server.port, min_free)
        # What is loaded by now stays: the collector need not look at it again for each some objects.
        gc.freeze()
        with Reporter(settings.store, activity, process):
            service.notify(service.READY, os.environ)
            wait_for_stop()
            service.notify(service.STOPPING, os.environ)
            log.info("stopping: running associations may finish for %d s", chosen.drain_seconds)
            server.stop(chosen.drain_seconds)
    return OK


def _certificates(chosen: ScpOptions) -> Certificates | None:
    """None: no TLS. Raises UsageError when the files are wrong."""
    if chosen.tls_certificate is None:
        return None
    client_ca = chosen.tls_ca if chosen.tls_client == "required" else None
    return Certificates(chosen.tls_certificate, chosen.tls_key, client_ca)


def _reporter(chosen: ScpOptions) -> ResultReporter:
    """Tells senders the results of their storage commitments. Raises UsageError."""
    certificate, authorities = chosen.tls_certificate, chosen.tls_ca
    tls = None
    if certificate is not None and authorities is not None:
        tls = partial(calling_context, certificate, chosen.tls_key, authorities)
    return ResultReporter(address_book(chosen.peer), tls)


def _tell_who_may_send(chosen: ScpOptions) -> None:
    if chosen.open:
        log.warning(
            "--open: EVERY SENDER IS ACCEPTED%s; keep this port inside the hospital's network",
            ", the allow-list does not count" if chosen.allow else "",
        )
    elif chosen.allow:
        log.info("senders: %s", ", ".join(map(str, chosen.allow)))
    else:
        log.info("senders: programs of this machine")
    if chosen.tls_certificate is not None and chosen.tls_client == "off":
        log.warning("tls_client = off: senders need no certificate")


def _mount(options: argparse.Namespace, settings: Settings) -> int:
    chosen = mount_options(options.options, settings.mount)
    ready = lambda: service.notify(service.READY, os.environ)  # noqa: E731
    mounting.run(settings.store, options.mountpoint, chosen, ready)
    return OK


def _import(options: argparse.Namespace, settings: Settings) -> int:
    chosen = _with_scp(options, settings).scp
    way_in = partial(Ingest.open, settings.store, chosen.duplicates, chosen.min_free.of)
    tally = _take_in(options, way_in, as_json=options.json)
    return OK if tally.complete else SOME_REFUSED


def _take_in(options: argparse.Namespace, way_in: Callable[[], Ingest], *, as_json: bool = False) -> "_Tally":
    """Take the files of `options.paths` into a store, with progress and summary."""
    files = importer.find(options.paths)
    tally = _Tally(len(files))
    with way_in() as ingest, _progress("importing", len(files), quiet=options.quiet) as advance:

        def done(result: importer.Result) -> None:
            tally.note(result)
            advance()

        try:
            importer.take_in(ingest, files, done)
        finally:
            tally.print(as_json=as_json)
    return tally


def _render(options: argparse.Namespace, settings: Settings) -> int:
    chosen = mount_options(options.options, settings.mount)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {options.output}: {error.strerror}") from error
    # A store of its own, thrown away afterwards, so that names and pools are exactly a mount's.
    with tempfile.TemporaryDirectory(prefix="dicomfs-render-") as scratch:
        store = Path(scratch, "store")
        tally = _take_in(options, partial(Ingest.open, store))
        total = offline.count(store, chosen)
        with _progress("rendering", total, quiet=options.quiet) as advance:
            written = offline.write_out(store, options.output, chosen, advance)
    for path, why in written.failed:
        log.warning("%s cannot be displayed: %s", path, why)
    print(f"{written.files:8} files in {options.output}")
    if written.failed:
        print(f"{len(written.failed):8} of them say why they cannot be displayed")
    return OK if tally.complete and not written.failed else SOME_REFUSED


class _Tally:
    """What became of the files of one import."""

    def __init__(self, files: int) -> None:
        self._files = files
        self._stored: Counter[Stored] = Counter()
        self._refused: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()

    def note(self, result: importer.Result) -> None:
        """Count one file, and log what needs somebody's attention."""
        if result.outcome is not None:
            self._stored[result.outcome.stored] += 1
            for warning in result.outcome.warnings:
                log.warning("%s: %s", result.outcome.sop_instance_uid, warning)
        elif result.is_dicom:
            self._refused[result.reason] += 1
            log.warning("refused %s: %s", result.path, result.reason)
        else:
            self._skipped[result.reason] += 1
            log.debug("skipped %s: %s", result.path, result.reason)

    @property
    def complete(self) -> bool:
        """True when something was taken in and every DICOM object was."""
        return bool(self._stored) and not self._refused

    def print(self, *, as_json: bool) -> None:
        """The summary: what was stored, already there, refused, skipped, and why."""
        refused, skipped = self._refused.total(), self._skipped.total()
        left = self._files - self._stored.total() - refused - skipped
        if as_json:
            facts: dict[str, object] = {"files": self._files}
            facts |= {stored.name.lower(): self._stored[stored] for stored in Stored}
            facts |= {"refused": refused, "skipped": skipped, "not_tried": left}
            print(json.dumps({**facts, "reasons": self._refused + self._skipped}))
            return
        for stored in Stored:
            if self._stored[stored] or stored is Stored.NEW:
                print(f"{self._stored[stored]:8} {stored.value}")
        for word, reasons in (("refused", self._refused), ("skipped", self._skipped)):
            if reasons:
                print(f"{reasons.total():8} {word}")
            for reason, number in reasons.most_common():
                print(f"{'':8}   {number} × {reason}")
        if left:
            print(f"{left:8} not tried")


@contextlib.contextmanager
def _progress(what: str, total: int | None, *, quiet: bool) -> Iterator[Callable[[], None]]:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def _serve(options: argparse.Namespace, settings: Settings) -> int:
    settings = _with_scp(options, settings)
    receive = for_this_machine(settings.scp)
    access(receive)
    # Checked here so that a wrong option is an error of this command and not of a part of it.
    chosen = mount_options(options.options, settings.mount)
    mounting.check_machine(chosen)
    mounting.check_mount_point(options.mount.absolute())
    mounting.check_apart(settings.store, options.mount)
    program = [sys.executable, "-m", "dicomfs.cli"]
    part_of_us = {**os.environ, service.PARENT_VARIABLE: str(os.getpid())}
    common = ["--store", str(settings.store)]
    for name in ("config", "verbose", "quiet"):
        value = getattr(options, name)
        if value:
            common += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    receive = replace(receive, port=receive.port or _free_port())
    host, port = receive.host, receive.port
    _check_free(host, port)
    if options.samba_port is not None:
        if not 0 < options.samba_port <= 65535:
            raise UsageError(f"samba-port {options.samba_port}: must be from 1 to 65535")
        _check_free("127.0.0.1", options.samba_port)
    address = "127.0.0.1" if host in ("", "0.0.0.0") else host  # noqa: S104
    parts = [
        serve.Part(
            "the receiver (scp)",
            [*program, "scp", *common, *scp_arguments(receive)],
            lambda: _connects(address, port),
            part_of_us,
        ),
        serve.Part(
            "the mount",
            [
                *program,
                "mount",
                *common,
                str(options.mount),
                *(x for o in options.options for x in ("-o", o)),
            ],
            lambda: _is_mounted(options.mount),
            part_of_us,
            revival=serve.Revival(lambda: _clear_mount(options.mount), lambda: _close_share(smbd)),
        ),
    ]
    smbd: samba.PreparedSmbd | None = None
    with contextlib.ExitStack() as scratch:
        if options.samba_port is not None:
            folder = Path(scratch.enter_context(_scratch_folder()))
            smbd = samba.prepare(folder, options.mount.absolute(), options.samba_port)
            parts.append(
                serve.Part(
                    "smbd",
                    smbd.argv,
                    lambda: _connects("127.0.0.1", smbd.port),
                    environment=smbd.env,
                )
            )

        def ready() -> None:
            log.info("receiving as %s on %s port %d", receive.aet, host or "all addresses", port)
            if receive.host != settings.scp.host:
                log.warning(
                    "images are received from this machine only: name the scanners with --allow, or --open"
                )
            log.info("pictures in %s", options.mount)
            if smbd is not None:
                log.info("shared as //127.0.0.1:%d/%s", smbd.port, smbd.share_name)
            service.notify(service.READY, os.environ)

        try:
            serve.run(parts, ready)
        finally:
            # The parts that would show it are gone too.
            _clear_mount(options.mount)
    return OK


def _clear_mount(mountpoint: Path) -> None:
    """A mount process that was killed leaves its mount."""
    if _is_mounted(mountpoint):
        mounting.unmount(mountpoint.absolute().parent.resolve() / mountpoint.name)


def _close_share(smbd: samba.PreparedSmbd | None) -> None:
    """Sessions that hold the former mount are refused everything until they connect to the share anew."""
    if smbd is None or not smbd.close_share:
        return
    done = subprocess.run(smbd.close_share, env=smbd.env, capture_output=True, text=True, check=False)
    if done.returncode:
        log.warning("clients of the share must connect anew: smbcontrol said %s", done.stderr.strip())


@contextlib.contextmanager
def _scratch_folder() -> Iterator[str]:
    import tempfile  # noqa: PLC0415  only with a private smbd

    with tempfile.TemporaryDirectory(prefix="dicomfs-smbd-") as folder:
        yield folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _check_free(host: str, port: int) -> None:
    """Else whoever listens there already would be taken for our part. Raises UsageError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(f"cannot listen on {host} port {port}: {error.strerror}") from error


def _connects(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def _is_mounted(mountpoint: Path) -> bool:
    # Only the parent is looked at: the mount itself may be dead, and then even a stat fails.
    point = mountpoint.absolute().parent.resolve() / mountpoint.name
    return any(m.point == point and m.type == f"fuse.{mounting.TYPE_NAME}" for m in mounting.mounts())


def _status(options: argparse.Namespace, settings: Settings) -> int:
    answer = statuscommand.answer(options, settings)
    print(answer.text, end="")
    if answer.trouble:
        _complain(answer.trouble)
        return STORE_TROUBLE
    return ALARM if answer.is_alarm else OK


def _forget(options: argparse.Namespace, settings: Settings) -> int:
    forgetting.run(options, settings.store)
    return OK


def _scrub(options: argparse.Namespace, settings: Settings) -> int:
    is_clean = maintenance.run_scrub(
        settings.store,
        partial(_progress, quiet=options.quiet),
        quick=options.quick,
        repair=options.repair,
        as_json=options.json,
    )
    return OK if is_clean else ALARM


def _reindex(options: argparse.Namespace, settings: Settings) -> int:
    watch = partial(_progress, quiet=options.quiet)
    is_clean = maintenance.run_reindex(settings.store, watch, as_json=options.json)
    return OK if is_clean else ALARM


def _samba_config(options: argparse.Namespace, _settings: Settings) -> int:
    module = samba.glusterfs_fuse_available()
    path, name, users = options.mountpoint.absolute(), options.name, options.valid_users
    if options.share_only:
        text = samba.share_definition(
            name, path, has_glusterfs_fuse=module, valid_users=users, for_macs=options.macs
        )
    else:
        text = samba.configuration(
            name,
            path,
            has_glusterfs_fuse=module,
            valid_users=users,
            version=samba.samba_version(),
            for_macs=options.macs,
        )
    print(text, end="")
    if not module:
        _complain(
            "the Samba module glusterfs_fuse is not here: names that do not exist will be slow "
            "(Debian: apt install samba-vfs-modules)"
        )
    return OK


# mount -t dicomfs


def mount_helper(arguments: Sequence[str] | None = None) -> int:
    """`mount.dicomfs STORE MOUNTPOINT [-sfnv] [-o OPTIONS]`: returns when the mount answers."""
    parser = argparse.ArgumentParser(prog="mount.dicomfs", description="Helper of mount(8) for dicomfs.")
    parser.add_argument("store", type=Path)
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("-o", action="append", default=[], dest="options", metavar="OPTIONS")
    for flag in "sfnv":
        parser.add_argument(f"-{flag}", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        mounting.check_machine(mount_options(options.options))
        mounting.check_mount_point(options.mountpoint.absolute())
    except DicomfsError as error:
        _complain(str(error))
        return _exit_code(error)
    if options.f:
        return OK
    argv = [sys.executable, "-m", "dicomfs.cli", "mount", "--store", str(options.store)]
    argv += [str(options.mountpoint), *(x for o in options.options for x in ("-o", o))]
    # The mount outlives mount(8): a session of its own, and no terminal.
    # It logs to syslog; what else it says goes to us until it answers, so `$(mount ...)` does not wait.
    quiet = {**os.environ, SYSLOG_VARIABLE: "1"}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [*argv, "--quiet"] if not SYSLOG_SOCKET.exists() else argv,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env=quiet,
            start_new_session=True,
        )
        code = _when_mounted(process, options.mountpoint)
        said.seek(0)
        sys.stderr.write(said.read().decode(errors="replace"))
    return code


def _when_mounted(process: "subprocess.Popen[bytes]", mountpoint: Path) -> int:
    deadline = time.monotonic() + MOUNT_HELPER_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        if _is_mounted(mountpoint):
            return OK
        time.sleep(0.05)
    if process.poll() is None:
        process.terminate()
        _complain(f"the mount did not answer within {MOUNT_HELPER_LIMIT_S:.0f} s")
        return FAILED
    return process.returncode or FAILED


if __name__ == "__main__":
    sys.exit(main())
