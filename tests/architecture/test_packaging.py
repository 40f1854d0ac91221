"""What is shipped, read as text: image, compose, exact versions, the README's promises."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from ipaddress import ip_address
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from cds import environment

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {"web", "worker-interactive", "worker-batch", "worker-train", "beat"}
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if "==" in line and not line.startswith("#")
)


# -- the image ---------------------------------------------------------------------------------------
def test_the_image_does_not_run_as_root() -> None:
    user = re.findall(r"^USER (\S+)$", DOCKERFILE, flags=re.MULTILINE)[-1]
    assert user not in ("root", "0")
    assert DOCKERFILE.index(f"USER {user}") < DOCKERFILE.index("CMD")


def test_the_image_holds_the_cpu_build_of_torch() -> None:
    assert "torch.version.cuda is None" in DOCKERFILE


def test_the_image_is_built_from_exact_versions() -> None:
    assert "-c constraints.txt" in DOCKERFILE
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE)
    assert all(re.fullmatch(r"[a-z/]+:\d[\w.-]*", base) for base in bases)


def test_the_image_copies_every_room() -> None:
    for room in ("cds", "ehr", "fusion", "web"):
        assert re.search(rf"^COPY {room} {room}$", DOCKERFILE, flags=re.MULTILINE)


# -- compose -----------------------------------------------------------------------------------------
def test_processes_of_web_count_together() -> None:
    """Prometheus asks one of them: each would tell of itself alone."""
    started = COMPOSE["services"]["web"]["command"]
    assert "--workers 2" in started
    assert "rm -rf /tmp/metrics && mkdir /tmp/metrics" in started
    assert "exec env PROMETHEUS_MULTIPROC_DIR=/tmp/metrics gunicorn" in started


def test_compose_has_every_service() -> None:
    assert OURS | {"postgres", "redis", "orthanc"} <= SERVICES.keys()


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_have_a_version_and_never_latest(name: str) -> None:
    version = SERVICES[name]["image"].partition(":")[2]
    assert re.match(r"\d", version)
    assert "latest" not in version


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - {"migrate"}))
def test_every_service_says_whether_it_is_well(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_services_run_in_production_and_share_the_pixels(name: str) -> None:
    service = SERVICES[name]
    assert service["environment"]["TESSERA_ENV"] == "production"
    assert "data:/data" in service["volumes"]
    assert "migrate" in service["depends_on"]


def test_secrets_have_no_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for name in ("POSTGRES_PASSWORD", "ORTHANC_PASSWORD"):
        assert set(re.findall(rf"\$\{{{name}([^}}]*)\}}", text)) == {f":?set {name} in .env"}


def test_ports_are_open_on_loopback_only() -> None:
    for service in SERVICES.values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


def test_the_proxy_on_this_machine_is_believed_by_web() -> None:
    """It comes through Docker's bridge; that is safe only while no port is open any wider (above)."""
    said = SERVICES["web"]["environment"]["TRUSTED_PROXIES"]
    networks = environment.networks(re.fullmatch(r"\$\{TRUSTED_PROXIES:-(.*)\}", said)[1])  # type: ignore[index]
    for gateway in ("127.0.0.1", "172.17.0.1", "172.18.0.1", "192.168.16.1"):
        assert any(ip_address(gateway) in network for network in networks), gateway
    assert not any(ip_address("203.0.113.9") in network for network in networks)


def test_what_must_outlive_a_container_is_in_a_volume() -> None:
    assert {"data", "postgres", "redis", "orthanc"} <= COMPOSE["volumes"].keys()


# -- versions ----------------------------------------------------------------------------------------
def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    names = {re.split(r"[\[<>=;~! ]", one)[0].lower().replace("_", "-") for one in named} - {"tessera"}
    assert names <= {pin.lower().replace("_", "-") for pin in PINS}


def test_pins_are_plain_versions() -> None:
    for name, version in PINS.items():
        assert re.fullmatch(r"[0-9][\w.]*", version), f"{name}: no addresses, no local versions"
    assert PINS["torch"] == "2.13.0"


def test_the_heavy_relatives_of_torch_stay_out() -> None:
    for name in ("torchvision", "timm"):
        assert importlib.util.find_spec(name) is None
    assert "torchvision<0" in (ROOT / "constraints.txt").read_text()


# -- what is promised ----------------------------------------------------------------------------------
INSTALL = (
    "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[dev]' "
    "&& .venv/bin/python manage.py demo"
)
TEST = ".venv/bin/python -m pytest"


def test_the_readme_has_the_two_commands_on_lines_of_their_own() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert INSTALL in lines
    assert TEST in lines


def test_ci_ends_with_exactly_the_readmes_test_command() -> None:
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.strip()]
    assert commands[-1] == TEST
    assert any("TESSERA_REQUIRE_SERVICES=1" in line for line in commands)
