"""A disk that refuses: one message, and what was whole stays whole."""

import errno
import os
import shutil
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.summary.writer.record_writer import RecordWriter

from gpt2_lightning.cli import main
from gpt2_lightning.generate.text_model import load_checkpoint
from gpt2_lightning.logs import quieten
from tests.command_line import CALM, fine_tuning

RUN = Path("lightning_logs/version_0")
EVERY_STEP = (
    "--trainer.max_steps=4",
    "--trainer.val_check_interval=1",
    "--trainer.check_val_every_n_epoch=null",
    "--samples.enabled=false",
)


class FullDisk:
    """Refuses from one call of a function on, as a full disk does, until there is room."""

    def __init__(self, function: Any, calls: int) -> None:
        self.function = function
        self.calls = calls
        self.full = True

    def __call__(self, *given: Any, **more: Any) -> Any:
        """Call the function, or refuse."""
        self.calls -= 1
        if self.full and self.calls < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.function(*given, **more)


def refused(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *words])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert said.err.count("error: ") == 1
    return said.out + said.err


# two checkpoints are written at each validation: the best, and its copy as the last
@pytest.mark.slow
@pytest.mark.parametrize("saved", [2, 3, 4, 5])
def test_checkpoints_stay_whole_and_the_run_goes_on(
    saved: int,
    wiki_folder: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = FullDisk(lambda function, *given: function(*given), saved)
    monkeypatch.setattr(torch, "save", partial(disk, torch.save))
    monkeypatch.setattr(shutil, "copyfileobj", partial(disk, shutil.copyfileobj))
    said = refused((*fine_tuning(wiki_folder, tiny_model), *CALM, *EVERY_STEP), capsys)
    checkpoints = RUN / "checkpoints"
    name = f"best-step{saved // 2 + 1}-" if saved % 2 == 0 else "last.ckpt: "
    assert f"error: {checkpoints / name}" in said
    assert "no space is left on the disk at /" in said
    assert "--trainer.default_root_dir FOLDER puts a run on another disk" in said
    assert f"fit --ckpt_path {RUN}\n" in said
    files = sorted(file.name for file in checkpoints.iterdir())
    assert len(files) == 2  # the best before goes when the new one is whole
    for name in files:
        load_checkpoint(checkpoints / name)
    disk.full = False
    main(["fit", "--ckpt_path=last", *CALM])
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 4


def test_curves_that_do_not_fit(
    wiki_folder: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # TensorBoard writes in a thread of its own, which tells no name
    monkeypatch.setattr(RecordWriter, "write", lambda *_: FullDisk(None, 0)())
    said = refused((*fine_tuning(wiki_folder, tiny_model), *CALM, *EVERY_STEP), capsys)
    assert f"error: {RUN}: no space is left on the disk at /" in said


def test_what_fails_in_other_threads_is_still_said(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    quieten()
    quieten()  # a second command in the same process

    class OfTensorBoard(threading.Thread):
        pass

    OfTensorBoard.__module__ = "tensorboard.summary.writer.event_file_writer"

    def fail() -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for kind in (threading.Thread, OfTensorBoard):
        thread = kind(target=fail)
        thread.start()
        thread.join()
    assert [type(failed.thread) for failed in seen] == [threading.Thread]
