"""What the documents show runs as shown."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_python_of_the_readme_runs():
    found = blocks("README.md", "python")
    assert found
    for code in found:
        exec(compile(code, "README.md", "exec"), {})


def test_commands_of_the_documents_exist():
    """Every `ehrseq` command in a code block names a verb and flags that exist."""
    commands = []
    for document in ("README.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))):
        for block in blocks(document, "bash"):
            lines = block.replace("\\\n", " ").splitlines()
            commands += [line.split("#")[0].split() for line in lines if line.startswith("ehrseq ")]
    assert len(commands) >= 6
    helps: dict[tuple[str, ...], str] = {}
    for command in commands:
        verb = tuple(command[1:3]) if command[1] in ("task", "benchmark") else (command[1],)
        if verb not in helps:
            done = subprocess.run(
                [sys.executable, "-m", "ehrsequencing", *verb, "--help"], capture_output=True, text=True, check=True
            )
            helps[verb] = done.stdout
        for flag in (word for word in command if word.startswith("--")):
            assert flag in helps[verb], f"{' '.join(command)}: {flag}"


def test_documents_link_to_what_is_there():
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("script", ["train_behrt_demo.py", "train_behrt_finetune.py"])
def test_examples_have_the_flags_of_their_readme(script):
    readme = (ROOT / "examples" / "pretrain_finetune" / "README.md").read_text()
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "pretrain_finetune" / script, "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for flag in (
        "--model_size", "--use_lora", "--lora_rank", "--num_patients", "--epochs", "--batch_size", "--lr", "--dropout",
        "--weight_decay", "--early_stopping_patience", "--realistic_data", "--experiment_name",
    ):  # fmt: skip
        assert flag in done.stdout
        assert flag in readme
