"""What ends a run: signals, errors, full disks; and what it leaves to go on from."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning import Callback

from tests.saving.failing import failing
from tests.trainers.pictures import draw_pictures
from tests.trainers.test_resume import start
from tests.trainers.tiny import LIGHTNING_REMARKS, Images, Spy, make_image_task, make_trainer
from trainers.callbacks import LastCheckpoint, WeightEMA
from trainers.core.checkpoints import read_checkpoint
from trainers.run.stops import StopAtSignal, Stopped
from vqkit import Tokenizer, TokenShards

pytestmark = LIGHTNING_REMARKS

# ---------------------------------------------------------------------- between steps


def behind(batch, act):
    """Does something behind a batch."""

    def look(trainer, *_):
        if trainer.fit_loop.total_batch_idx + 1 == batch:
            act(trainer)

    return Spy(look)


def fit(folder, *callbacks, **arguments):
    """Ten batches of two, three in an accumulation: steps behind batches 3, 6, 8, 11, 14, 16, ..., 24."""
    options = {"max_steps": 9, "accumulate_grad_batches": 3, "enable_checkpointing": True} | arguments
    trainer = make_trainer(callbacks=[WeightEMA(0.5), *callbacks, LastCheckpoint(str(folder))], **options)
    trainer.fit(make_image_task(warmup_steps=2), datamodule=Images(2))


def set_should_stop(trainer):
    trainer.should_stop = True


def send(trainer):
    os.kill(os.getpid(), signal.SIGTERM)


def raise_error(trainer):
    raise RuntimeError("of the user")


@pytest.mark.parametrize(
    ("act", "batch", "step"),
    [(set_should_stop, 3, 1), (set_should_stop, 4, 2), (send, 4, 2), (send, 6, 2), (raise_error, 4, None)],
)
def test_a_run_stops_behind_a_step(tmp_path, act, batch, step):
    with StopAtSignal() as stop:
        try:
            fit(tmp_path, behind(batch, act), stop, limit_val_batches=0)
        except Stopped as stopped:
            assert act is send and stopped.code == 143
            assert f"SIGTERM at step {step}; to go on: the same command with --ckpt_path" in stopped.line
        except RuntimeError:
            assert act is raise_error
    if step is None:
        assert not (tmp_path / "last.ckpt").exists()  # within an accumulation
    else:
        assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == step


def test_a_signal_behind_the_last_step_ends_the_command_too(tmp_path):
    class SendsAtTheEnd(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.global_step == trainer.max_steps:
                send(trainer)

    with StopAtSignal() as stop, pytest.raises(Stopped) as stopped:
        fit(tmp_path, SendsAtTheEnd(), stop)
    assert stopped.value.code == 143 and "SIGTERM at step 9; to go on" in stopped.value.line
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 9


def test_an_error_between_two_steps_keeps_the_steps(tmp_path):
    class Unreadable(Images):
        def train_dataloader(self):
            return _Ends(super().train_dataloader())

        def initialization_dataloader(self):
            return super().train_dataloader()

    last = LastCheckpoint(str(tmp_path))
    trainer = make_trainer(callbacks=[last], enable_checkpointing=True, limit_val_batches=0, max_steps=9)
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        trainer.fit(make_image_task(), datamodule=Unreadable(2))
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 3


class _Ends(list):
    def __iter__(self):
        yield from self[:3]
        raise FileNotFoundError("gone.png")


def test_last_ckpt_is_written_by_time_and_before_a_validation(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(LastCheckpoint, "write", lambda _, trainer: written.append(trainer.global_step))
    minutes = iter(range(100))
    monkeypatch.setattr("trainers.callbacks.checkpoints.time.monotonic", lambda: 60.0 * next(minutes))
    last = LastCheckpoint(str(tmp_path), every_n_minutes=3)
    make_trainer(max_steps=6, callbacks=[last], enable_checkpointing=True, limit_val_batches=0).fit(
        make_image_task(), datamodule=Images(2)
    )
    assert written[0] == 3 and written[-1] == 6  # not before three minutes, and at the end


@pytest.mark.parametrize("minutes", [0, -1.0, float("nan")])
def test_a_time_is_above_0(minutes):
    with pytest.raises(ValueError, match=r"every_n_minutes=.*: expected a time above 0"):
        LastCheckpoint(every_n_minutes=minutes)


# ---------------------------------------------------------------------- the command line


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def finished(process):
    output, errors = process.communicate()
    return process.returncode, output, errors


@pytest.fixture
def pictures(tmp_path):
    draw_pictures(tmp_path / "pictures", 16)
    return tmp_path


ENDLESS = "--trainer.max_steps=1000000"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, pytest.param(0, marks=pytest.mark.long)])
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
def test_a_signal_to_the_whole_group_ends_fit(pictures, name, status, workers):
    """As a terminal and a scheduler send it: the processes that load data get it too."""
    options = [ENDLESS, f"--data.num_workers={workers}"]
    process = start(pictures, "mine", *options, start_new_session=True)
    wait_for(pictures / "runs/mine/checkpoints/last.ckpt", process)
    os.killpg(process.pid, getattr(signal, name))
    found, _, errors = finished(process)
    assert found == status, errors
    assert "Traceback" not in errors and errors.count(f"stopped by {name} at step") == 1
    assert read_checkpoint(pictures / "runs/mine/checkpoints/last.ckpt")["global_step"] > 0


@pytest.mark.slow
def test_a_signal_before_the_first_step_and_a_second_one(pictures):
    process = start(pictures, "mine", ENDLESS, "--data.root=" + str(pictures / "pictures"))
    wait_for(pictures / "runs/mine/config.yaml", process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    status, _, errors = finished(process)
    assert status == 143, errors
    assert "Traceback" not in errors


SLOW_SHARDS = """
import time
from pathlib import Path
from lightning.pytorch import Callback

class Slow(Callback):
    def on_predict_batch_end(self, trainer, *_):
        Path({mark!r}).touch()
        time.sleep(0.5)
"""


@pytest.mark.slow
def test_predict_ends_with_a_shard_and_goes_on(pictures):
    assert finished(start(pictures, "mine"))[0] == 0
    (pictures / "slow.py").write_text(SLOW_SHARDS.format(mark=str(pictures / "mark")))
    process = start(pictures, "mine", "--trainer.callbacks+=slow.Slow", subcommand="predict")
    wait_for(pictures / "mark", process)
    process.send_signal(signal.SIGTERM)
    status, _, errors = finished(process)
    assert status == 143, errors
    assert "stopped by SIGTERM with its shard written; to go on: the same command" in errors
    assert 0 < len(TokenShards(pictures / "runs/mine/tokens")) < 16
    status, output, _ = finished(start(pictures, "mine", subcommand="predict"))
    assert status == 0 and "are left out" in output
    assert len(TokenShards(pictures / "runs/mine/tokens")) == 16


@pytest.mark.slow
def test_two_ranks_stop_behind_the_same_step(pictures):
    options = [ENDLESS, "--trainer.devices=2", "--trainer.strategy=ddp"]
    process = start(pictures, "pair", *options, GLOO_SOCKET_IFNAME="lo")
    wait_for(pictures / "runs/pair/checkpoints/last.ckpt", process)
    process.send_signal(signal.SIGTERM)
    status, _, errors = finished(process)
    assert status == 143, errors
    assert "Traceback" not in errors and errors.count("stopped by SIGTERM at step") == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="one file system")
def test_a_kill_while_writing_leaves_a_whole_checkpoint(pictures):
    """The folder for temporary files is on another file system than the run."""
    options = [ENDLESS, "--last_checkpoint.every_n_steps=1"]
    path = pictures / "runs/mine/checkpoints/last.ckpt"
    for attempt in range(2):
        resume = ["--ckpt_path=last"] if attempt else []
        process = start(pictures, "mine", *options, *resume, TMPDIR="/dev/shm")
        before = path.stat().st_mtime_ns if attempt else 0
        wait_for(path, process)
        while path.stat().st_mtime_ns == before:
            assert process.poll() is None, process.communicate()[1]
        while not list(path.parent.glob(".last.ckpt.*")):
            assert process.poll() is None, process.communicate()[1]
        process.kill()
        process.communicate()
        read_checkpoint(path)


# ---------------------------------------------------------------------- full disks


def folder_is_whole(run):
    """Everything in a run folder loads, or is not there."""
    assert not list(run.rglob("*.partial"))
    for path in run.rglob("*.ckpt"):
        read_checkpoint(path)
    if (run / "tokenizer" / "config.json").exists():
        Tokenizer.from_pretrained(run / "tokenizer")
    if list(run.glob("tokens/manifest-*")):
        [sample["indices"] for sample in TokenShards(run / "tokens")]


def command(cli, folder, subcommand, **more):
    code, _, errors = cli(subcommand, **{"data.root": folder / "pictures", "tokens.samples_per_shard": 8, **more})
    return code, errors


def failing_at(monkeypatch, cli, folder, subcommand, write):
    with monkeypatch.context() as context:
        context.setattr(os, "fsync", failing(os.fsync, after=write))
        return command(cli, folder, subcommand)


def check_refused(folder, code, errors):
    assert code == 1 and "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("error: ")
    assert "was not written (No space left on device): free some space" in errors.splitlines()[-1]
    folder_is_whole(folder / "run")


def test_a_full_disk_ends_fit_in_one_line(pictures, monkeypatch, cli):
    """At the first write, and with it at that of the traceback."""
    check_refused(pictures, *failing_at(monkeypatch, cli, pictures, "fit", 0))


@pytest.mark.slow
def test_a_full_disk_at_any_write(pictures, monkeypatch, cli):
    for subcommand, least in (("fit", 6), ("test", 1), ("predict", 4)):
        for write in range(100):
            if subcommand == "fit":
                shutil.rmtree(pictures / "run", ignore_errors=True)  # which a second fit would have to go on from
            code, errors = failing_at(monkeypatch, cli, pictures, subcommand, write)
            if code == 0:
                break
            check_refused(pictures, code, errors)
        assert write >= least


def test_an_error_is_said_where_its_traceback_cannot_be_written(pictures, cli):
    (pictures / "run/traceback.txt").mkdir(parents=True)
    code, errors = command(cli, pictures, "fit", **{"data.batch_size": 64})
    reason, refusal, head, *_ = errors[errors.index("error: ") :].splitlines()
    assert code == 1 and "do not fill a batch" in reason
    assert "traceback.txt was not written (Is a directory)" in refusal and head.startswith("Traceback")


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_ends_an_example_in_one_line(tmp_path):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    words = [sys.executable, "examples/plain_pytorch.py", "--steps", "1", "--output", str(tmp_path / "model")]
    done = subprocess.run(words, preexec_fn=limit, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "was not written (File too large)" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
