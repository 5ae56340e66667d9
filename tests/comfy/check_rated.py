"""Runs `python -m chats_train check` on a rated folder, over a tiny base: check_rated.py SCRATCH FOLDER."""

import json
import sys
from pathlib import Path

import tiny_pipelines

from chats_train import cli

scratch, folder = map(Path, sys.argv[1:])
run = {
    "version": 1,
    "family": "sd15",
    "output_dir": str(scratch / "run"),
    "pretrained_model": str(tiny_pipelines.save_pipeline("sd15", scratch / "base")),
    "data": {"path": str(folder)},
    "resolution": 64,
    "bucket_reso_steps": 16,
    "mixed_precision": "no",
}
(scratch / "run.yaml").write_text(json.dumps(run), encoding="utf-8")
sys.exit(cli.main(["check", str(scratch / "run.yaml")]))
