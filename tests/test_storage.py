"""Whole files and folders: what a power cut, a kill, a full disk and another process leave."""

import errno
import os
import resource
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file

from gpt2_lightning.errors import UsageError
from gpt2_lightning.fit.checkpoints import WholeCheckpoints, give_to_async
from gpt2_lightning.storage import (
    append_text,
    disk_message,
    scratch_folder,
    sweep,
    undo,
    whole_file,
    whole_folder,
    write_text,
)
from tests.command_line import fine_tuning, fit

Calls = list[tuple[str, Path]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What is flushed and what is renamed, in that order, as a disk without power would know it."""
    seen: Calls = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def flushed(handle: int) -> None:
        seen.append(("flush", Path(os.readlink(f"/proc/self/fd/{handle}"))))
        fsync(handle)

    def renaming(how: Callable[..., None]) -> Callable[..., None]:
        def renamed(old: Any, new: Any, **more: Any) -> None:
            seen.extend((("from", Path(old).absolute()), ("to", Path(new).absolute())))
            how(old, new, **more)

        return renamed

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renaming(rename))
    monkeypatch.setattr(os, "replace", renaming(replace))
    return seen


def unflushed(calls: Calls) -> list[str]:
    """Return the renames that a power cut could lose, or that could come before their content."""
    wrong = []
    for at, (what, path) in enumerate(calls):
        if what == "from" and path.name != "old" and ("flush", path) not in calls[:at]:
            wrong.append(f"{path} was renamed before it was flushed")
        aside = what == "to" and path.name == "old"  # it was there before, and on the disk
        if what == "to" and not aside and ("flush", path.parent) not in calls[at:]:
            wrong.append(f"{path}: its folder was not flushed")
    return wrong


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="tells files by /proc")
def test_a_run_is_on_the_disk_before_it_counts(
    calls: Calls, wiki_folder: Path, tiny_model: Path
) -> None:
    run = fit(
        *fine_tuning(wiki_folder, tiny_model),
        "--trainer.max_steps=4",
        "--trainer.val_check_interval=2",
        "--trainer.check_val_every_n_epoch=null",
    )
    made = {path.name for what, path in calls if what == "to"}
    assert {"last.ckpt", "hf", "facts.json", "metrics.csv", "report.html"} <= made
    assert any(name.startswith("best-step") for name in made)
    assert unflushed(calls) == []
    flushed = {path for what, path in calls if what == "flush"}
    for name in ("samples.jsonl", "surprisal.jsonl", "config.yaml"):
        assert (run / name).absolute() in flushed
    assert not list(Path().rglob("*.partial"))


@pytest.mark.slow
def test_the_best_before_stays_until_the_new_one_is_whole(
    wiki_folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[bool] = []

    def removed(self: WholeCheckpoints, path: str) -> None:
        newest = max(Path(path).parent.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
        there.append(newest != Path(path) and "hf_config" in torch.load(newest, weights_only=True))
        Path(path).unlink()

    monkeypatch.setattr(WholeCheckpoints, "remove_checkpoint", removed)
    fit(
        *fine_tuning(wiki_folder, tiny_model),
        "--data.batch_size=8",
        "--trainer.max_epochs=3",
        "--model.learning_rate=1e-2",
    )
    assert there
    assert all(there)


def test_a_failed_save_leaves_the_one_before(tmp_path: Path) -> None:
    files = WholeCheckpoints()
    target = tmp_path / "checkpoints" / "last.ckpt"
    files.save_checkpoint({"step": 1}, target)

    class Unsaveable:
        def __reduce__(self) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as refused:
        files.save_checkpoint({"step": 2, "more": Unsaveable()}, target)
    assert refused.value.filename == str(target)
    assert torch.load(target, weights_only=True) == {"step": 1}
    assert [file.name for file in target.parent.iterdir()] == ["last.ckpt"]


def test_saving_behind_the_training_removes_only_what_it_has_outlived(tmp_path: Path) -> None:
    plugin = AsyncCheckpointIO()
    give_to_async([plugin])
    assert isinstance(plugin.checkpoint_io, WholeCheckpoints)
    plugin.save_checkpoint({"step": 1}, tmp_path / "1.ckpt")
    (tmp_path / "2.ckpt").mkdir()  # in the way of the next one
    plugin.save_checkpoint({"step": 2}, tmp_path / "2.ckpt")
    with pytest.raises(UsageError, match="no regular file"):
        plugin.remove_checkpoint(tmp_path / "1.ckpt")  # asked for at once, as Lightning does
    assert torch.load(tmp_path / "1.ckpt", weights_only=True) == {"step": 1}


@pytest.mark.slow
def test_a_run_that_saves_behind_the_training(
    wiki_folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = WholeCheckpoints.save_checkpoint

    def slow(self: WholeCheckpoints, *given: Any, **more: Any) -> None:
        done.wait(0.3)  # nobody sets it
        hasty(self, *given, **more)

    done = threading.Event()
    monkeypatch.setattr(WholeCheckpoints, "save_checkpoint", slow)
    sender = "{class_path: tests.signals.SendSignal, init_args: {number: 15, batch: 3}}"
    with pytest.raises(SystemExit):
        fit(
            *fine_tuning(wiki_folder, tiny_model),
            "--trainer.val_check_interval=1",
            "--trainer.plugins=lightning.pytorch.plugins.io.AsyncCheckpointIO",
            f"--trainer.callbacks=[{sender}]",
        )
    run = Path("lightning_logs/version_0")
    names = sorted(file.name for file in (run / "checkpoints").iterdir())
    assert len(names) == 2
    assert names[0].startswith("best-step")
    best = torch.load(run / "checkpoints" / names[0], weights_only=True)["state_dict"]
    weights = load_file(run / "hf" / "model.safetensors")["transformer.wte.weight"]
    assert torch.equal(weights, best["model.transformer.wte.weight"])


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
) -> None:
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            with whole_file(tmp_path / "a.ckpt") as stream, whole_folder(tmp_path / "hf"):
                stream.write(b"half")
                stream.flush()
                os.write(writer, b".")
                signal.pause()
        finally:
            os._exit(0)
    os.read(reader, 1)
    try:
        assert len(list(tmp_path.iterdir())) == 2
        assert sweep(tmp_path) == []
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    (tmp_path / ".notes-abcdefgh.partial.txt").touch()  # is none
    assert len(sweep(tmp_path)) == 2
    assert [file.name for file in tmp_path.iterdir()] == [".notes-abcdefgh.partial.txt"]


def test_an_end_at_once_undoes_what_is_being_written(tmp_path: Path) -> None:
    write_text(tmp_path / "hf" / "config.json", "old")
    with whole_folder(tmp_path / "hf", replace=True) as folder:
        write_text(folder / "config.json", "new")
        os.rename(tmp_path / "hf", folder.parent / "old")  # the moment between the two renames
        undo()
        assert (tmp_path / "hf" / "config.json").read_text() == "old"
        folder.mkdir(parents=True)
    assert not list(tmp_path.glob("*.partial"))


def test_an_unfinished_line_is_lost_alone(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text('{"step": 1}\n{"step": ')
    append_text(file, '{"step": 3}\n')
    assert file.read_text() == '{"step": 1}\n{"step": \n{"step": 3}\n'


def test_lines_that_do_not_fit_are_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_text(tmp_path / "a.jsonl", "one\n")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as refused:
        append_text(tmp_path / "a.jsonl", "two\n")
    assert refused.value.filename == str(tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_text() == "one\n"


@pytest.mark.parametrize("size", [300, 20_000])  # less than a buffer holds, and more
def test_lines_that_fit_only_in_part_are_taken_back(tmp_path: Path, size: int) -> None:
    append_text(tmp_path / "a.jsonl", "one\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, before[1]))  # Python ignores its signal
    try:
        with pytest.raises(OSError, match="File too large") as refused:
            append_text(tmp_path / "a.jsonl", "x" * size + "\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused.value.filename == str(tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_text() == "one\n"


def test_permissions_and_links_are_kept(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("old")
    (tmp_path / "real" / "a.txt").chmod(0o600)
    (tmp_path / "a.txt").symlink_to(tmp_path / "real" / "a.txt")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "real" / "a.txt").read_text() == "new"
    assert (tmp_path / "real" / "a.txt").stat().st_mode & 0o777 == 0o600
    WholeCheckpoints().save_checkpoint({}, tmp_path / "a.txt")  # a last.ckpt that links to the best
    assert not (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "real" / "a.txt").read_text() == "new"


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="no regular file"):
        write_text(tmp_path / "pipe", "text")
    with pytest.raises(UsageError, match="no regular file"):
        write_text(Path("/dev/null"), "text")


def test_a_name_as_long_as_the_disk_allows(tmp_path: Path) -> None:
    name = "长" * 84 + "abc"
    write_text(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"


@pytest.mark.parametrize(
    "met",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_the_file_is_named_whichever_library_met_the_disk(tmp_path: Path, met: Exception) -> None:
    with pytest.raises(OSError, match="No space left") as refused, whole_folder(tmp_path / "hf"):
        raise met
    assert refused.value.filename == str(tmp_path / "hf")
    message = disk_message(refused.value)
    assert message is not None
    assert message.startswith(f"{tmp_path / 'hf'}: no space is left on the disk at /")


def test_what_cannot_be_read_is_not_blamed_on_what_is_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as refused, whole_folder(tmp_path / "tokens"):
        (tmp_path / "absent.txt").read_text()
    assert refused.value.filename == str(tmp_path / "absent.txt")


def test_a_folder_that_may_not_be_written_is_the_one_that_is_there(tmp_path: Path) -> None:
    refused = OSError(errno.EACCES, "Permission denied", str(tmp_path / "logs" / "version_0"))
    assert f"permission denied. ls -ld {tmp_path} shows" in str(disk_message(refused))


def test_names_in_bytes_are_said_as_text() -> None:
    assert disk_message(OSError(errno.EROFS, "Read-only", b"/a/b")) == (
        "/a/b: the disk at / can only be read."
    )


def test_a_full_temporary_folder_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 0

    disk_usage = shutil.disk_usage
    full = tmp_path / "full"
    full.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(full))
    monkeypatch.setattr(
        shutil, "disk_usage", lambda place: Usage if place == full else disk_usage(place)
    )
    with scratch_folder() as folder:
        assert folder.parent == Path.cwd()
