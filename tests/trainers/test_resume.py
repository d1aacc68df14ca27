"""A run that was killed and resumed ends in the same weights as one that was not."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from tests.trainers.conftest import ROOT, TINY
from tests.trainers.pictures import draw_pictures
from tests.trainers.tiny import assert_equal
from trainers.core.checkpoints import read_checkpoint

KILLER = '''
import os, signal
from lightning.pytorch import Callback

class Killer(Callback):
    """Signals the process in the middle of an accumulation, one step after a checkpoint."""
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx + 1 == {batch}:
            os.kill(os.getpid(), signal.{name})
'''


def heed():
    """SIGINT, which a shell lets processes in the background ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start(folder, name, *arguments, subcommand="fit", start_new_session=False, **environment):
    command = [sys.executable, "-m", "trainers", subcommand, "--config", "configs/image/quickstart.yaml"]
    options = {
        "name": name,
        "runs": folder / "runs",
        "data.root": folder / "pictures",
        **TINY,
        "data.batch_size": 2,
        "data.cache_bytes": 0,
        "model.tokenizer.encoder.dropout": 0.1,
        "model.tokenizer.quantizer.maintenance": '[{"class_path": "vqkit.RandomRestart", "init_args": {"every": 1}}]',
        "last_checkpoint.every_n_steps": 3,
        "validation.every_n_steps": 1,
        "trainer.max_steps": 9,
        "trainer.accumulate_grad_batches": 2,
        "trainer.limit_val_batches": 1,
    }
    command += [f"--{key}={value}" for key, value in options.items()]
    variables = (
        os.environ
        | environment
        | {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "disabled",
        }
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": heed}
    pipes["start_new_session"] = start_new_session
    return subprocess.Popen([*command, *arguments], cwd=ROOT, env=variables, **pipes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "status", "step"),
    [
        ("SIGKILL", -signal.SIGKILL, 4),
        ("SIGTERM", 143, 6),
        pytest.param("SIGINT", 130, 6, marks=pytest.mark.long),  # as SIGTERM, but for the number
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, name, status, step):
    draw_pictures(tmp_path / "pictures", 16)
    # Step 4 has a checkpoint, since a validation follows; batch 10 is amid the second pass over the data, and amid an
    # accumulation.
    (tmp_path / "killer.py").write_text(KILLER.format(batch=10, name=name))
    whole = start(tmp_path, "whole")
    stopped = start(tmp_path, "broken", "--trainer.callbacks+=killer.Killer")
    _, errors = stopped.communicate()
    assert stopped.returncode == status, errors
    assert "Traceback" not in errors
    assert (f"stopped by {name} at step {step}; to go on: " in errors) == (name != "SIGKILL")
    assert read_checkpoint(tmp_path / "runs/broken/checkpoints/last.ckpt")["global_step"] == step
    resumed = start(tmp_path, "broken", "--ckpt_path=last")
    for process in (whole, resumed):
        output, errors = process.communicate()
        assert process.returncode == 0, errors
    assert "resuming from" in output

    files = [tmp_path / "runs" / name / "checkpoints" / "last.ckpt" for name in ("whole", "broken")]
    expected, found = (torch.load(file, weights_only=True) for file in files)
    assert expected["global_step"] == found["global_step"] == 9
    for part in ("state_dict", "current_model_state"):
        assert_equal(found[part], expected[part])
    assert_equal(*(checkpoint["optimizer_states"][0]["state"] for checkpoint in (found, expected)))
