"""The documentation is held to the code: every setting, outcome, error code and route is told, and examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from capi_core.audit import Action
from capi_core.commands import Outcome
from capi_core.config import FeaturesConfig, LimitsConfig, ModelConfig, RetentionConfig, UpstreamConfig, parse

ROOT = Path(__file__).parent.parent
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()
OPERATION = (ROOT / "docs/operation.md").read_text()
README = (ROOT / "README.md").read_text()

PROBLEM = re.compile(r"""Problem\(\s*\d{3},\s*"([a-z_]+)"|code="([a-z_]+)"|Failure\.\w+: \(\s*\d{3},\s*"([a-z_]+)\"""")


def error_codes() -> set[str]:
    """Every code that the source can answer with, read off the source."""
    sources = [*ROOT.glob("capi_core/**/*.py"), ROOT / "capi_trio/app.py", ROOT / "capi_trio/connection.py"]
    text = "\n".join(path.read_text() for path in sources if path.name not in {"request_head.py", "sse.py"})
    return {code for groups in PROBLEM.findall(text) for code in groups if code}


@pytest.mark.parametrize(
    ("heading", "struct"),
    [
        ("Upstreams", UpstreamConfig),
        ("Aliases", ModelConfig),
        ("Limits", LimitsConfig),
        ("Features", FeaturesConfig),
        ("Retention", RetentionConfig),
    ],
)
def test_every_setting_is_documented_with_its_default(heading: str, struct: type[msgspec.Struct]) -> None:
    section = CONFIGURATION.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    for member in msgspec.structs.fields(struct):
        row = re.search(rf"^\| `(?:models\.NAME\.)?{member.name}` \|([^|]*)\|", section, re.MULTILINE)
        assert row, f"{member.name} is not in docs/configuration.md"
        default = member.default
        if isinstance(default, bool):
            assert str(default).lower() in row[1], f"{member.name}: its default is {default}"
        elif isinstance(default, int | float):
            assert f"{default:g}" in row[1] or str(default) in row[1], f"{member.name}: its default is {default}"


def test_every_error_code_is_documented() -> None:
    codes = error_codes()
    assert len(codes) > 20
    assert {code for code in codes if f"`{code}`" not in OPERATION} == set()


def test_every_audited_action_is_documented() -> None:
    assert {action.value for action in Action if f"`{action.value}`" not in OPERATION} == set()


def test_every_outcome_is_documented() -> None:
    assert {outcome.value for outcome in Outcome if f"`{outcome.value}`" not in OPERATION} == set()


@pytest.mark.parametrize("document", ["README.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md"))])
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{document} links to {target}"


def test_the_configurations_in_the_documents_are_valid() -> None:
    blocks = re.findall(r"```json\n(.*?)```", README + CONFIGURATION, re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        members = msgspec.json.decode(block, type=dict[str, msgspec.Raw])
        members.setdefault("upstreams", msgspec.Raw(b'{"lab": {"kind": "demo"}}'))  # what an excerpt leaves out
        parse(msgspec.json.encode(members))


@pytest.mark.parametrize("example", sorted(path.name for path in ROOT.glob("examples/*.py")))
def test_examples_run(example: str) -> None:
    command = [sys.executable, str(ROOT / "examples" / example)]
    done = subprocess.run(  # noqa: S603 - our own file
        command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "outcome=<Outcome.OK" in done.stdout
