"""`dicomfs serve`: receiver, mount and a private smbd, put together and taken apart again."""

import argparse
import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dicomfs import mount as mounting
from dicomfs import samba, serve, service
from dicomfs.config import Settings, mount_options
from dicomfs.errors import UsageError
from dicomfs.exitcodes import OK
from dicomfs.scpcommand import with_flags
from dicomfs.scpoptions import access, for_this_machine, scp_arguments

log = logging.getLogger("dicomfs.cli")


def run(options: argparse.Namespace, settings: Settings) -> int:
    """`dicomfs serve`, until it is stopped; its exit code."""
    settings = with_flags(options, settings)
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
            lambda: mounting.is_mounted(options.mount),
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
    if mounting.is_mounted(mountpoint):
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
