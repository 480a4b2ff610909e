"""The verb table: Lightning's verbs go to LightningCLI, each of ours to one function."""

import difflib
import io
import os
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Any, NoReturn

from gpt2_lightning import startup
from gpt2_lightning.errors import UsageError
from gpt2_lightning.parser import recipes
from gpt2_lightning.startup import heavy_imports
from gpt2_lightning.storage import disk_message

BEFORE_VERBS = {
    "fetch": "a model or data from the Hub, a mirror or ModelScope; or what a folder is",
    "inspect": "what the model will really see: lengths, losses, duplicates, a first block",
    "plan": "what a run takes: steps, memory, time and disk, and what looks wrong",
}

LIGHTNING_VERBS = {
    "fit": "train or fine-tune; evaluates, samples and saves on the way",
    "validate": "perplexity on the validation split",
    "test": "perplexity on the test split",
    "predict": "continue every prompt of a file, spread over the devices",
}

OUR_VERBS = {
    "evaluate": "perplexity you can publish: a labelled card of a model on a text",
    "export": "a folder for other programs and the Hub, verified, with a model card",
    "generate": "continue prompts with a trained model: at once, as it comes, or in conversation",
    "report": "a page about a run, or several side by side",
    "serve": "an HTTP server on the OpenAI completions protocol, with a page to try it",
}

# verbs of neighbouring tools -> ours that do the same
FOREIGN_VERBS = {
    **dict.fromkeys(("train", "finetune", "fine-tune", "pretrain", "resume", "run"), "fit"),
    **dict.fromkeys(("eval", "perplexity", "ppl", "benchmark"), "evaluate"),
    **dict.fromkeys(("sample", "infer", "inference", "complete", "chat"), "generate"),
    **dict.fromkeys(("download", "pull"), "fetch"),
    **dict.fromkeys(("convert", "push", "upload", "save"), "export"),
    **dict.fromkeys(("api", "server", "deploy"), "serve"),
    **dict.fromkeys(("estimate", "dryrun", "dry-run"), "plan"),
    **dict.fromkeys(("stats", "check", "data"), "inspect"),
}

HELP = """usage: python -m gpt2_lightning VERB [flags]

Fine-tune GPT-2 on your own text, know exactly how good it got, and use it.

before training:
{before}

training:
{lightning}

using a model:
{ours}

recipes (fit --config NAME, or a YAML file of yours):
  {recipes}

python -m gpt2_lightning VERB --help lists a verb's flags. --debug shows the traceback of an error.
"""


def main(argv: list[str] | None = None) -> None:
    """Run one verb.

    Args:
        argv: The words after the program's name; null takes the process' own.

    Raises:
        SystemExit: With code 2 after a user's mistake or where the system refuses, 130 after
            Ctrl-C, 141 where nobody reads on, 143 after SIGTERM.
    """
    startup.command_began = time.monotonic()
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    for stream in (sys.stdout, sys.stderr):  # letters that the terminal's encoding lacks
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        _dispatch(words)
        sys.stdout.flush()
    except UsageError as error:
        _refuse(error, debug)
    except BrokenPipeError:  # the reader has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # 128 + SIGPIPE, which Windows does not have
    except OSError as error:  # a full disk, a name that is too long
        if (message := disk_message(error)) is None:
            raise
        _refuse(UsageError(message), debug)
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit:
        if _is_child():
            sys.exit(0)
        raise


def _refuse(error: UsageError, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    if not _is_child():  # every rank has found it
        print(f"error: {error}", file=sys.stderr)
    sys.exit(0 if _is_child() else 2)


def _is_child() -> bool:
    """Tell whether another process of the run ends with its code, and speaks for all.

    At any other code of a child's, Lightning kills the first process while it saves.
    """
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0) > 0


def _dispatch(words: list[str]) -> None:
    verbs = [*BEFORE_VERBS, *LIGHTNING_VERBS, *OUR_VERBS]
    if words and words[0] in ("--help", "-h"):
        tables = {"before": BEFORE_VERBS, "lightning": LIGHTNING_VERBS, "ours": OUR_VERBS}
        texts = {group: _table(verbs) for group, verbs in tables.items()}
        print(HELP.format(**texts, recipes=", ".join(recipes())), end="")
        return
    if not words:
        raise UsageError(f"no verb was given. Choose one of: {', '.join(verbs)}; or --help.")
    verb = words[0]
    if verb.startswith("-"):
        found = next((word for word in words if word in verbs), "VERB")
        raise UsageError(
            f"{verb} stands before the verb. Write: python -m gpt2_lightning {found} {verb} ..."
        )
    if verb in (*LIGHTNING_VERBS, "plan", "inspect"):
        from gpt2_lightning.fit.flags import check_names

        check_names(verb, words[1:])
    if verb in LIGHTNING_VERBS:
        with heavy_imports():
            from gpt2_lightning.fit.train import run

        run(words)
    elif verb in BEFORE_VERBS or verb in OUR_VERBS:
        with heavy_imports():
            module = import_module(f"gpt2_lightning.{verb}.command")
        command: Callable[[list[str]], Any] = module.main
        command(words[1:])
    else:
        close = [FOREIGN_VERBS[verb]] if verb in FOREIGN_VERBS else []
        close += difflib.get_close_matches(verb, verbs, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"Verbs: {', '.join(verbs)}."
        raise UsageError(f"{verb}: there is no such verb. {hint}")


def _table(verbs: dict[str, str]) -> str:
    return "\n".join(f"  {verb:10} {what}" for verb, what in verbs.items())
