"""The command line: arguments, configuration, the console's log; most commands have modules of their own."""

import argparse
import logging
import logging.handlers
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.logging import RichHandler

from dicomfs import (
    __version__,
    filescommand,
    forgetting,
    maintenance,
    samba,
    scpcommand,
    servecommand,
    service,
    statuscommand,
)
from dicomfs import mount as mounting
from dicomfs.config import STORE_VARIABLE, Settings, load, mount_options, option_help
from dicomfs.errors import DicomfsError
from dicomfs.exitcodes import ALARM, FAILED, OK, STORE_TROUBLE, exit_code
from dicomfs.progress import progress
from dicomfs.scpoptions import (
    Flag,
    import_flags,
    scp_flags,
)

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
        return exit_code(error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # `dicomfs status | head`: nobody reads on, and that is no error.
        sys.stdout = None  # so that the interpreter does not flush it at exit
        return OK


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

    receive = add("scp", scpcommand.run, "Receive images (C-STORE) until stopped.")
    _add_flags(receive, scp_flags())

    mount = add("mount", _mount, "Show the store as folders of pictures, until unmounted or stopped.")
    mount.formatter_class = argparse.RawDescriptionHelpFormatter
    mount.epilog = _options_text()
    mount.add_argument("mountpoint", type=Path, help="an empty folder")
    _add_mount(mount)

    take_in = add(
        "import", filescommand.import_files, "Take in DICOM files from disk, the same way as received ones."
    )
    take_in.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files or folders")
    take_in.add_argument("--json", action="store_true", help="print the summary as JSON")
    _add_flags(take_in, import_flags())

    render = add(
        "render",
        filescommand.render,
        "Write pictures of DICOM files, as a mount of exactly these would show them.",
    )
    render.formatter_class = argparse.RawDescriptionHelpFormatter
    render.epilog = _options_text()
    render.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files or folders")
    render.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the folders go")
    _add_mount(render)

    together = add(
        "serve", servecommand.run, "Receive and mount in one command, with a private smbd if asked."
    )
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


def _mount(options: argparse.Namespace, settings: Settings) -> int:
    chosen = mount_options(options.options, settings.mount)
    ready = lambda: service.notify(service.READY, os.environ)  # noqa: E731
    mounting.run(settings.store, options.mountpoint, chosen, ready)
    return OK


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
        partial(progress, quiet=options.quiet),
        quick=options.quick,
        repair=options.repair,
        as_json=options.json,
    )
    return OK if is_clean else ALARM


def _reindex(options: argparse.Namespace, settings: Settings) -> int:
    watch = partial(progress, quiet=options.quiet)
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
        return exit_code(error)
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
        if mounting.is_mounted(mountpoint):
            return OK
        time.sleep(0.05)
    if process.poll() is None:
        process.terminate()
        _complain(f"the mount did not answer within {MOUNT_HELPER_LIMIT_S:.0f} s")
        return FAILED
    return process.returncode or FAILED


if __name__ == "__main__":
    sys.exit(main())
