"""What lies in the repository: nothing of somebody's machine, no large file, no dead link in the docs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from django.core.management import get_commands

from cds.hooks import offering
from cds.hooks.contexts import HOOKS
from cds.registry.outcomes import OUTCOMES

ROOT = Path(__file__).parents[2]
LARGEST = 500_000  # bytes
# spelled in pieces, so that this file does not hold what it looks for
ELSEWHERE = re.compile(
    r"(?<![\w.-])/wo"
    r"rk/|(?<![\w.-])/ro"
    r"ot/|/home/\w+/|\.lib"
    r"rary/"
    r"|pyp"
    r"i\.org|python"
    r"hosted|npm"
    r"js\.(com|org)|deb\.deb"
    r"ian"
)


def tracked() -> list[Path]:
    """Every file git knows, or, without git, every file that would be shipped."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_is_large() -> None:
    assert [str(path) for path in tracked() if path.stat().st_size > LARGEST] == []


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # a picture
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in ELSEWHERE.finditer(text)]
    assert found == []


def test_no_real_picture_or_model_is_kept() -> None:
    kept = {".dcm", ".npy", ".safetensors", ".sqlite3", ".pt", ".pth", ".jpg", ".jpeg"}
    assert [str(path) for path in tracked() if path.suffix.lower() in kept] == []


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if (
                not target.startswith(("http://", "https://", "mailto:"))
                and not (page.parent / target).exists()
            ):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_commands_named_in_the_documents_exist() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"manage\.py ([a-z_]+)", page.read_text())}
    assert named <= get_commands().keys()


def test_the_guides_service_id_is_one_we_serve() -> None:
    guide = (ROOT / "docs" / "guides" / "integrator.md").read_text()
    served = {offering.service_id_of(outcome, hook) for outcome in OUTCOMES for hook in HOOKS}
    assert set(re.findall(rf"tessera-[a-z-]+-(?:{'|'.join(HOOKS)})\b", guide)) <= served
