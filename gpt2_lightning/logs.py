"""What is kept off the screen, each with its reason, and lines that a run outlives."""

import errno
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from transformers.utils import logging as transformers_logging

from gpt2_lightning.storage import DISK_ERRORS

ThreadHook = Callable[[threading.ExceptHookArgs], object]

# message (a regular expression for its beginning), why it says nothing to a user
SILENCED = [
    # torch's own and lightning's use of each other; nothing a user could change
    (r".*LeafSpec.*deprecated", DeprecationWarning),
    (r".*treespec, LeafSpec.*", Warning),
    # the loaders read memory-mapped tokens: workers would only copy them about
    (r".*does not have many workers.*", Warning),
    # torch 2.9 says so of itself when it writes shards
    (r"TypedStorage is deprecated.*", UserWarning),
    # transformers' fault: it says so of its own arguments
    (r".*Please use the new API settings to control TF32.*", Warning),
    # we go on in the same run folder on purpose
    (r".*Checkpoint directory .* exists and is not empty.*", Warning),
    # short epochs are no mistake, and the last step of a run is always logged
    (r".*The number of training batches .* is smaller than the logging interval.*", Warning),
    # the loader takes the same batches in every epoch itself, in its own order
    (r".*You requested to overfit but enabled train dataloader shuffling.*", Warning),
    # batches carry their own counts
    (r".*Trying to infer the `batch_size` from an ambiguous collection.*", Warning),
    # a checkpoint that was moved away from its run goes on in a new run folder
    (r"The dirpath has changed from .*", Warning),
    # the run's own checkpoints, by the name that they had in earlier versions
    (r".*Please add the following callbacks: \[\"ModelCheckpoint\{[^]]*\]", Warning),
    # each batch of prompts tells their places itself
    (r".*Couldn't infer the batch indices.*", Warning),
    # we go on in the same run folder on purpose
    (r".*Experiment logs directory .* exists and is not empty.*", Warning),
]

# messages that begin, or go on, with these words
UNSAID = (
    # Totals says where a run goes on, a table of which checkpoint its figures are
    *("Restoring states from", "Restored all states from", "Loaded model weights from"),
    "Seed set to",  # config.yaml has it
    " thrown while requesting ",  # _naming_the_hub says it in a line
    # texts are scored unpadded, an end-of-text at their beginning
    "We strongly recommend passing in an `attention_mask`",
    "Tip: ",  # promotion
    "that has Tensor Cores. To properly utilize them",  # the line of the chosen settings names TF32
    "TPU available: False",  # hardware that few have
    "`Trainer.fit` stopped: ",  # a line of our own says why a run ended
)

HUB_LOGGER = "huggingface_hub.utils._http"


def _worth_saying(record: logging.LogRecord) -> bool:
    return not any(words in record.getMessage() for words in UNSAID)


def _naming_the_hub(record: logging.LogRecord) -> bool:
    """Say in the line of a retry what is tried; the error at the end says why in vain."""
    if (said := record.getMessage()).startswith("Retrying in "):
        record.msg, record.args = f"The Hub does not answer. {said}", ()
    return True


def _first_rank(record: logging.LogRecord) -> bool:
    lightning = sys.modules.get("lightning.pytorch.utilities")  # which `generate` does without
    rank = os.environ.get("RANK") if lightning is None else lightning.rank_zero_only.rank
    return int(rank or 0) == 0


def _unless_tensorboard_met_the_disk(found: ThreadHook) -> ThreadHook:
    """Leave a disk's refusal in TensorBoard's thread to the next writing, which raises it again.

    Args:
        found: What was called of a thread's failure before, and still is of all others.
    """
    refusals = DISK_ERRORS | {errno.EACCES, errno.EPERM}

    def hook(failed: threading.ExceptHookArgs) -> None:
        error = failed.exc_value
        by_tensorboard = type(failed.thread).__module__.startswith("tensorboard.")
        if not (by_tensorboard and isinstance(error, OSError) and error.errno in refusals):
            found(failed)

    return hook


def quieten() -> None:
    """Keep promotion and noise off the screen, and put our own messages onto it."""
    # Lightning calls what jsonargparse deprecated; there is nothing a user could change
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    if threading.excepthook.__module__ != __name__:  # once a process
        threading.excepthook = _unless_tensorboard_met_the_disk(threading.excepthook)
    for message, category in SILENCED:
        warnings.filterwarnings("ignore", message, category)
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.pytorch.trainer.setup",
        "lightning.fabric.utilities.seed",
        "transformers.modeling_utils",
    ):
        logging.getLogger(name).addFilter(_worth_saying)
    quieten_hub()
    # shards of small models load and save in no time; downloads keep their bars
    transformers_logging.disable_progress_bar()
    ours = logging.getLogger("gpt2_lightning")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(_first_rank)
    ours.handlers = [handler]
    ours.setLevel(logging.INFO)
    ours.propagate = False


def quieten_hub() -> None:
    """Say in a line, not in a traceback's words, that the Hub is asked again."""
    for judge in (_worth_saying, _naming_the_hub):
        logging.getLogger(HUB_LOGGER).addFilter(judge)


def say(line: str, stream: TextIO | None = None) -> None:
    """Print a line above the bar; a screen or pipe that has gone ends no run.

    Args:
        line: What to print.
        stream: Where; standard output unless said.
    """
    # a signal's handler may come in the middle of a write, which raises a RuntimeError
    with suppress(OSError, ValueError, RuntimeError):
        # not by a console of rich's, which would write into the bar
        print(line, file=stream or sys.stdout, flush=True)
