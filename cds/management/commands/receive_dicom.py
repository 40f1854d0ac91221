"""`manage.py receive_dicom`: be a DICOM node that scanners and archives send to."""

from __future__ import annotations

import signal
import ssl
import sys
import threading
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

import ehr
from cds import listening
from cds.patients import importing

SWITCH_S = 0.001  # the thread that writes rows must not keep those waiting that answer senders


class Command(BaseCommand):
    help = (
        "Receive DICOM by C-STORE (and answer C-ECHO) until stopped. Success is answered once a file lies "
        "durably in the store; a Study is complete when all that was announced of it is there, or nothing of "
        "it has come for a while."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--title", default="TESSERA", metavar="AET", help="our AE title")
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
        parser.add_argument("--port", type=int, default=11112)
        parser.add_argument(
            "--allow", action="append", default=[], metavar="AET", help="AE title that may send; repeat it"
        )
        parser.add_argument("--source", default="dicom", metavar="SLUG", help="whose patients these are")
        parser.add_argument("--quiet", type=float, default=listening.QUIET_S, metavar="S", help="seconds")
        parser.add_argument(
            "--most", type=int, default=8, help="associations at once; more are told to come back"
        )
        parser.add_argument(
            "--tls-cert", type=Path, metavar="FILE", help="certificate chain, PEM: DICOM over TLS"
        )
        parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key, PEM")
        parser.add_argument(
            "--tls-ca", type=Path, metavar="FILE", help="senders must show a certificate of this CA"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        sys.setswitchinterval(SWITCH_S)
        arrivals = listening.Arrivals(
            importing.get_source(options["source"], now=timezone.now()), quiet_s=options["quiet"]
        )
        stop = threading.Event()

        def end(*_: object) -> None:
            stop.set()
            arrivals.wake()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
        with arrivals, _listener(arrivals, options) as node:
            who = ", ".join(options["allow"]) or "anybody on this machine"
            self.stdout.write(
                f"{options['title']} listens on {options['host']}:{node.port}"
                f"{' over TLS' if options['tls_cert'] else ''}, for {who}; Ctrl-C stops it"
            )
            self.stdout.flush()
            listening.watch(arrivals, stop)
        self.stdout.write("stopped; what had been answered with success is stored")


def _listener(arrivals: listening.Arrivals, options: dict[str, Any]) -> ehr.StorageListener:
    try:
        return ehr.StorageListener(
            options["title"],
            options["port"],
            host=options["host"],
            allowed=options["allow"],
            take=arrivals.take,
            ended=arrivals.hang_up,
            into=arrivals.incoming,
            tls=_tls(options),
            most=options["most"],
        )
    except (ehr.EhrError, OSError) as error:
        raise CommandError(f"cannot listen on {options['host']}:{options['port']}: {error}") from error


def _tls(options: dict[str, Any]) -> ssl.SSLContext | None:
    if options["tls_cert"] is None:
        if options["tls_key"] or options["tls_ca"]:
            raise CommandError("--tls-key and --tls-ca need --tls-cert")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(options["tls_cert"], options["tls_key"])
        if options["tls_ca"]:
            context.load_verify_locations(options["tls_ca"])
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise CommandError(f"the TLS files cannot be used: {error}") from error
    return context
