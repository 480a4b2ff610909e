"""The processes of a run: a restart of torchrun, a lost process, the requeue of a SLURM job."""

import atexit
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from torch._C._distributed_c10d import PrefixStore, Store  # torch.distributed has them untyped
from torch.distributed import DistBackendError, DistNetworkError
from torch.distributed.rendezvous import rendezvous

from gpt2_lightning.errors import UsageError
from gpt2_lightning.logs import say
from gpt2_lightning.storage import undo

log = logging.getLogger(__name__)

RESUME = "The others cannot go on. --ckpt_path last goes on from the last checkpoint."

EXIT_WAIT = 3  # seconds, for the end of a process whose connection has broken

START_TIMEOUT = 1800  # seconds, for all processes of a start to come

HEARTBEAT_INTERVAL = 5  # seconds between two signs of life

HEARTBEAT_TIMEOUT = 60  # seconds without a sign of life after which a process counts as lost


# --- how they meet ----------------------------------------------------------------------------


def check_meeting(trainer: Trainer) -> None:
    """See that the processes of several machines know where to meet, and say where.

    Args:
        trainer: The run's, before its processes have met.

    Raises:
        UsageError: If nothing says it: each machine would wait for the others at a port of its own.
    """
    strategy = trainer.strategy
    if trainer.num_nodes == 1 or not isinstance(strategy, ParallelStrategy):
        return
    environment = strategy.cluster_environment
    assert environment is not None
    wanted = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
    lacking = [name for name in wanted if name not in os.environ]
    if isinstance(environment, LightningEnvironment) and lacking:
        raise UsageError(
            f"--trainer.num_nodes {trainer.num_nodes}: nothing tells this process where "
            "the machines meet. Start the command by torchrun or srun on each of them (the page on "
            f"scaling has the line), or set {', '.join(lacking)} on each."
        )
    if environment.local_rank() == 0:
        say(
            f"{trainer.world_size} processes on {trainer.num_nodes} machines meet at "
            f"{environment.main_address}:{environment.main_port}; node {environment.node_rank()} "
            "waits there for the others.",
            sys.stderr,
        )


def start_process_group(strategy: Strategy) -> None:
    """Start the process group of a torchrun start under keys that no earlier start has used.

    torchrun keeps one store for all restarts. The addresses of the processes that have ended
    still stand there, under the same names, and a process that looks before the others have
    written theirs connects to one that is gone ("Connection refused"). Plain torch has the same
    race. Restarts cannot be told apart by their number, which is each agent's own.

    Args:
        strategy: The trainer's, before it has set up its environment.
    """
    parallel = isinstance(strategy, ParallelStrategy) and not dist.is_initialized()
    if "TORCHELASTIC_RUN_ID" not in os.environ or not parallel:
        return
    assert isinstance(strategy, ParallelStrategy)
    environment = strategy.cluster_environment
    assert environment is not None
    rank, world_size = environment.global_rank(), environment.world_size()
    store = _store(rank, world_size)
    # Lightning joins a process group that it finds; these two it would take from here as well
    timeout = getattr(strategy, "_timeout", None)
    backend = getattr(strategy, "process_group_backend", None)
    if backend is None:
        backend = "nccl" if strategy.root_device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=PrefixStore(f"start_{agree_on_prefix(store, rank, world_size)}", store),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )
    if backend == "nccl":
        atexit.register(dist.destroy_process_group)


def agree_on_prefix(store: Store, rank: int, world_size: int) -> str:
    """Agree on a prefix of keys that no earlier start of the same processes has used.

    Each process writes a random word for rank 0, which answers every word that it finds, also
    those of processes that have ended, until all have confirmed the answer: rank 0's own word.

    Args:
        store: That all share, with what earlier starts have left there.
        rank: This process.
        world_size: Number of processes.

    Raises:
        RuntimeError: If one does not come within half an hour.
    """
    mine = secrets.token_hex(8)
    if rank:
        store.set(f"hello_{rank}", mine)
        store.wait([f"answer_{mine}"])
        word = store.get(f"answer_{mine}").decode()
        store.set(f"{word}_{rank}", "confirmed")
        return word
    missing, ends = set(range(1, world_size)), time.monotonic() + START_TIMEOUT
    while missing:
        for other in list(missing):
            if store.check([f"hello_{other}"]):
                store.set(f"answer_{store.get(f'hello_{other}').decode()}", mine)
            if store.check([f"{mine}_{other}"]):
                missing.discard(other)
        if time.monotonic() > ends:
            raise RuntimeError(f"ranks {sorted(missing)} of {world_size} did not come")
        time.sleep(0.01)
    return mine


def wait_for_all() -> None:
    """Wait at the end of a stopped run until rank 0 has written its results.

    A process that ended before could have the others ended: by srun, by torchrun.
    """
    if dist.is_available() and dist.is_initialized():
        with suppress(RuntimeError):  # another has ended meanwhile
            dist.barrier()


def _store(rank: int, world_size: int) -> Store:
    """Return a connection of its own to the store of the processes."""
    found: Any = rendezvous("env://", rank=rank, world_size=world_size)
    store: Store = next(iter(found))[0]
    return store


def slurm_environment() -> list[ClusterEnvironment]:
    """Return the plugin that leaves the requeue of a SLURM job to `Stop`.

    Lightning's own would save in the middle of a step, into a file that no run looks for.

    Returns:
        It, where srun has started this process and torchrun has not.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False)]


def requeue_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask for a requeue: SIGUSR1 in a SLURM job."""
    return (signal.SIGUSR1,) if "SLURM_JOB_ID" in os.environ else ()


def requeue() -> None:
    """Ask SLURM to start this job again, under the same number; say what it answers."""
    job = os.environ["SLURM_JOB_ID"]
    if (array := os.environ.get("SLURM_ARRAY_JOB_ID")) is not None:
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=HEARTBEAT_TIMEOUT
        )
        answer = done.returncode and f"code {done.returncode}: {done.stderr.strip()}"
    except (OSError, subprocess.TimeoutExpired) as error:
        answer = str(error)
    if answer:
        say(f"error: scontrol requeue {job} failed ({answer}). sbatch starts it again.", sys.stderr)
    else:
        say(f"SLURM starts job {job} again; with --ckpt_path auto it goes on from here.")


# --- lost processes ---------------------------------------------------------------------------


class Heartbeat(Callback):
    """Ends a process that could only wait for another which is gone, or out of reach.

    Each process writes a sign of life into the store of the processes every 5 s, from a thread;
    rank 0 looks at those of all, the others at rank 0's. One that stays silent for 60 s is named,
    and the process ends with code 1. A collective operation alone would wait for half an hour, or
    for ever where a network has been cut. It begins with the validation before training and ends
    with training.
    """

    def __init__(self) -> None:
        self._over = threading.Event()
        self._heard: dict[int, float] = {}  # when each of those looked at last gave a sign

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, where there are several processes."""
        rank, world_size = trainer.global_rank, trainer.world_size
        if world_size == 1:
            return
        word = trainer.strategy.broadcast(secrets.token_hex(8))
        store = PrefixStore(f"heartbeat_{word}", _store(rank, world_size))
        store.set_timeout(timedelta(seconds=HEARTBEAT_TIMEOUT / 2))
        store.set(str(rank), "0")
        trainer.strategy.barrier()
        self.watch(store, rank, world_size)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave off: from here on the processes end at times of their own."""
        self.stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave off."""
        self.stop()

    def watch(self, store: Store, rank: int, world_size: int) -> None:
        """Begin to give signs of life and to look for those of others.

        Args:
            store: Of all processes; each has given its first sign there.
            rank: This process.
            world_size: Number of processes.
        """
        others = [other for other in range(world_size) if (rank == 0) != (other == 0)]
        self._heard = dict.fromkeys(others, time.monotonic())
        threading.Thread(target=self._beat, args=(store, rank), daemon=True).start()
        threading.Thread(target=self._end_if_silent, args=(world_size,), daemon=True).start()

    def stop(self) -> None:
        """Leave off."""
        self._over.set()

    def _beat(self, store: Store, rank: int) -> None:
        beats, seen = 0, dict.fromkeys(self._heard, b"")
        while not self._over.wait(HEARTBEAT_INTERVAL):
            beats += 1
            try:
                store.set(str(rank), str(beats))
                signs = store.multi_get([str(other) for other in seen])
            except RuntimeError:  # of torch's own kinds: the store's process or network is gone
                continue
            for other, sign in zip(list(seen), signs, strict=True):
                if sign != seen[other]:
                    seen[other], self._heard[other] = sign, time.monotonic()

    def _end_if_silent(self, world_size: int) -> None:
        looked = time.monotonic()
        while not self._over.wait(min(1, HEARTBEAT_TIMEOUT / 4)):
            before, looked = looked, time.monotonic()
            if looked - before > HEARTBEAT_TIMEOUT / 2:  # this process itself was suspended
                self._heard = dict.fromkeys(self._heard, looked)
            now = looked
            silent = [
                other for other, heard in self._heard.items() if now - heard > HEARTBEAT_TIMEOUT
            ]
            if silent:
                ranks = ", ".join(map(str, silent))
                what = f"no sign of life for {HEARTBEAT_TIMEOUT} s: ended, stopped, or out of reach"
                say(
                    f"error: rank {ranks} of {world_size} was lost ({what}). {RESUME}",
                    sys.stderr,
                )
                undo()
                os._exit(1)  # the main thread waits in a collective operation


def is_of_another_process(error: BaseException) -> bool:
    """Tell whether an error says that a connection to another process of the run has broken."""
    # gloo raises a plain RuntimeError, with the path of its own source file in it
    return isinstance(error, DistBackendError | DistNetworkError) or "gloo/transport" in str(error)


def lost_process(trainer: Trainer, parent: int) -> str:
    """Say which process of a run has ended; an empty text where another process says it.

    Args:
        trainer: Of a process that is left.
        parent: The parent of this process at its start: for those that Lightning starts, rank 0.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_JOB_ID" in os.environ:
        return f"another of the {trainer.world_size} processes of this run was lost. {RESUME}"
    until = time.monotonic() + EXIT_WAIT  # a connection breaks before its process is gone
    started: list[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    while time.monotonic() < until:
        if trainer.local_rank and os.getppid() != parent:
            return f"rank 0 of {trainer.world_size} was lost: its process has ended. {RESUME}"
        for number, process in enumerate(started, 1):
            if process.poll():
                rank = trainer.global_rank + number
                return f"rank {rank} of {trainer.world_size} was lost: {_end_of(process)}. {RESUME}"
        time.sleep(0.05)
    return "" if trainer.local_rank else f"another process of this run was lost. {RESUME}"


def _end_of(process: "subprocess.Popen[bytes]") -> str:
    if process.returncode > 0:
        return f"it ended with code {process.returncode}, and its own message stands above"
    name = signal.Signals(-process.returncode).name
    memory = ", as the system does where memory has run out" if name == "SIGKILL" else ""
    return f"{name} has ended it{memory}"
