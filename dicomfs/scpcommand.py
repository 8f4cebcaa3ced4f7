"""`dicomfs scp`: a receiver, from its options to its end."""

import argparse
import contextlib
import gc
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from dicomfs import scp, service
from dicomfs.activity import Activity
from dicomfs.association import Limits
from dicomfs.commitmentservice import CommitmentService
from dicomfs.config import Settings
from dicomfs.exitcodes import OK
from dicomfs.ingest import Ingest
from dicomfs.peers import address_book
from dicomfs.reporter import Reporter as ResultReporter
from dicomfs.runfile import Process, Reporter
from dicomfs.scpoptions import ScpOptions, access, scp_flags, scp_options
from dicomfs.tls import Certificates, calling_context

log = logging.getLogger("dicomfs.cli")


def with_flags(options: argparse.Namespace, settings: Settings) -> Settings:
    """Settings with what the command line says of the receiver. Raises UsageError."""
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


def run(options: argparse.Namespace, settings: Settings) -> int:
    """`dicomfs scp`, until it is stopped; its exit code."""
    chosen = with_flags(options, settings).scp
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
