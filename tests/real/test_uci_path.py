"""The README's commands on a part of the real UCI records, from the publisher's zip to the report."""

import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = os.environ.get("EHRSEQ_DATA")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA, reason="EHRSEQ_DATA does not name the real data; see tests/real/README.md"),
]


def test_the_commands_of_the_readme(tmp_path):
    source = Path(str(DATA)) / "uci_diabetes130"
    rows = (source / "diabetic_data.csv").read_text().splitlines()[:6001]
    with zipfile.ZipFile(tmp_path / "diabetes+130-us+hospitals.zip", "w") as archive:
        archive.writestr("diabetic_data.csv", "\n".join(rows) + "\n")
        archive.write(source / "IDs_mapping.csv", "IDs_mapping.csv")
    block = next(b for b in re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL) if "uci" in b)
    commands = [shlex.split(line) for line in block.splitlines()]
    assert [command[1] for command in commands] == ["import", "prepare", "pretrain", "finetune", "evaluate"]
    for _, verb, *arguments in commands:
        short = ["--epochs", "2"] if verb in ("pretrain", "finetune") else []
        done = subprocess.run(
            [sys.executable, "-m", "ehrsequencing", verb, *arguments, *short],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs/uci/lora/summary.json").read_text())
    assert {"behrt-small-lora", "logistic_regression", "random_forest", "xgboost"} == set(summary["metrics"])
    page = (tmp_path / "runs/uci/lora/report.html").read_text()
    assert "xgboost" in page.lower()
