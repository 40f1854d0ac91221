"""A PostgreSQL of its own for a measurement: default settings, durable commits, on loopback."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import scratch


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Start one and give its URL; stopped afterwards. DATABASE_URL in the environment is used instead."""
    if given := os.environ.get("BENCHMARK_DATABASE_URL"):
        yield given
        return
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    tools = Path(found[-1]).parent if found else Path(shutil.which("initdb") or "").parent
    if not (tools / "initdb").exists():
        raise SystemExit("PostgreSQL is not installed here: install it, or set BENCHMARK_DATABASE_URL")
    folder.mkdir(parents=True)
    as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_postgres:
        shutil.chown(folder, "postgres")
    port = scratch.free_port()
    data = folder / "data"

    def tool(*command: str) -> None:
        subprocess.run(
            [*as_postgres, *command],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    tool(str(tools / "initdb"), "-D", str(data), "-A", "trust", "-U", "tessera", "-E", "UTF8")
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder}"
    tool(str(tools / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgres://tessera@127.0.0.1:{port}/postgres"
    finally:
        tool(str(tools / "pg_ctl"), "-D", str(data), "-m", "fast", "stop")
