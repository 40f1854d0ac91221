"""Who may import whom: the contracts of pyproject.toml hold, and the request process never loads torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]

# The modules of cds that may reach torch, all of them run by workers or commands. A new one is a decision:
# put it here, or (if a request can reach it) take its import of fusion out.
WORKERS_ONLY = {
    "cds.features.building",
    "cds.features.encoding",
    "cds.features.fields",
    "cds.features.observations",
    "cds.registry.comparing",  # imported by training alone
    "cds.registry.following",  # likewise
    "cds.registry.loading",
    "cds.registry.tasks",
    "cds.registry.training",
    "cds.risk.monitoring",
    "cds.risk.scoring",
    "cds.risk.measuring",
    "cds.risk.tasks",
}
COMMANDS = ("cds.management.", "cds.demo.")


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Every import between our modules, and to the packages outside."""
    return grimp.build_graph("cds", "fusion", "ehr", "web", include_external_packages=True, cache_dir=None)


def test_the_contracts_of_pyproject_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert lint_imports(no_cache=True) == 0, capsys.readouterr().out


def test_only_workers_and_commands_reach_torch(graph: grimp.ImportGraph) -> None:
    ours = {name for name in graph.modules if name.startswith(("cds.", "web.", "ehr."))}
    reaching = {name for name in ours if graph.chain_exists(importer=name, imported="torch")}
    assert {name for name in reaching if not name.startswith(COMMANDS)} <= WORKERS_ONLY


def test_rooms_are_used_through_their_door_only(graph: grimp.ImportGraph) -> None:
    inner = [
        (importer, imported)
        for room in ("ehr", "fusion")
        for imported in graph.find_descendants(room)
        for importer in graph.find_modules_that_directly_import(imported)
        if not importer.startswith(f"{room}.") and importer != room
    ]
    assert inner == []


def test_a_web_process_has_not_loaded_torch_when_it_is_ready_to_answer() -> None:
    program = (
        "import sys, cds.asgi\n"
        "from django.urls import get_resolver\n"
        "get_resolver().url_patterns\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'scipy', 'monai'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_no_file_is_called_after_nothing() -> None:
    nameless = {"utils", "helpers", "common", "misc"}
    found = [
        path
        for room in ("cds", "ehr", "fusion", "web")
        for path in (ROOT / room).rglob("*")
        if path.stem in nameless and "__pycache__" not in path.parts
    ]
    assert found == []
