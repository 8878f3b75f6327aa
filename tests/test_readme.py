"""What README, the model card and CONTRIBUTING say is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import cmudrn
from cmudrn.checkpoint import read_checkpoint
from cmudrn.cli.app import main
from cmudrn.engines.spec import receptive_radius

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "checkpoints/README.md",
    "cmudrn/weights/default.md",
    *(
        f"docs/{name}.md"
        for name in (
            "benchmark",
            "datasets",
            "engines",
            "evaluation",
            "gate",
            "gpu",
            "long_runs",
            "measurements",
            "native",
            "parity",
            "training",
            "tune",
            "video",
            "weather",
        )
    ),
)


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands(name: str) -> list[tuple[str, set[str]]]:
    """(command, options) of every `cmudrn ...` in code spans and indented blocks."""
    spans = re.findall(r"`([^`\n]+)`", text(name)) + re.findall(r"^    (.+)$", text(name), re.MULTILINE)
    verbs = "infer|train|evaluate|ablate|synthesize|build-engine|parity-check|doctor|benchmark|tune"
    found = [re.search(rf"\bcmudrn ({verbs})\b(.*)", span.split("#")[0]) for span in spans]
    return [(match[1], set(re.findall(r"(?<!\w)--?[a-z][a-z0-9-]*", match[2]))) for match in found if match]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_in_the_documents_have_the_options_they_are_shown_with(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, options in commands(name):
        assert main([command, "--help"]) == 0
        listed = capsys.readouterr().out
        for option in options:
            assert re.search(rf"(?<![\w-]){option}\b", listed), f"{name}: cmudrn {command} {option}"


def test_commands_are_found_in_the_readme_at_all() -> None:
    assert {"infer", "train", "evaluate", "ablate", "synthesize", "build-engine"} <= {
        command for command, _ in commands("README.md")
    }


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_between_the_documents_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", text(name)):
        if not target.startswith("http"):
            assert ((ROOT / name).parent / target).exists(), f"{name} links to {target}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_folders_and_files_that_are_named_exist(name: str) -> None:
    named = re.findall(
        r"`((?:cmudrn|train|engines|deploy|tests|benchmarks|tools|examples|docs)/[\w./-]*)`", text(name)
    )
    for path in named:
        assert (ROOT / path).exists(), f"{name} names {path}"


def test_the_readmes_python_runs() -> None:
    (code,) = re.findall(r"```python\n(.+?)```", text("README.md"), re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert isinstance(names["model"], torch.nn.Module)


def test_the_readmes_numbers_are_the_models() -> None:
    assert "24,825" in text("README.md")
    assert sum(tensor.size for tensor in read_checkpoint("default").tensors.values()) == 24_825
    assert f"receptive radius ({receptive_radius(3)} pixels at T = 3)" in text("README.md")
    assert read_checkpoint("default").inter_loops == 3


def test_the_changelog_knows_this_version_or_what_is_to_come() -> None:
    assert "## Unreleased" in text("CHANGELOG.md") or f"## {cmudrn.__version__}" in text("CHANGELOG.md")
