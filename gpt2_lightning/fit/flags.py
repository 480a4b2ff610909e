"""The names of fit's flags, read from source files: a mistyped one is refused before any import.

The parser (settings.py) has its flags from the signatures of classes, whose imports take seconds.
What cannot be told from their source files is left to it.
"""

from gpt2_lightning.parser import check_config_files, no_such_flag, with_recipes, with_underscores
from gpt2_lightning.startup import parameters

# a group of flags, and what takes them; where the first takes **kwargs, the next gets them
GROUPS = {
    "trainer": ["lightning.pytorch.trainer.trainer.Trainer"],
    "model": ["gpt2_lightning.model.module.GPT2Module"],
    "model.architecture": ["gpt2_lightning.model.gpt2.Architecture"],
    "model.lora": ["gpt2_lightning.model.lora.Lora"],
    "model.sampling": ["gpt2_lightning.model.sampling.SamplingOptions"],
    "data": ["gpt2_lightning.data.datamodule.WikiTextDataModule"],
    "checkpoint": [
        "gpt2_lightning.fit.checkpoints.RunCheckpoint",
        "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    ],
    "samples": ["gpt2_lightning.fit.samples.Samples"],
    "early_stopping": ["gpt2_lightning.fit.stop.EarlyStop"],
}

# flags that are filled in from others; they are none themselves
LINKS = {
    "model.block_size": "data.block_size",
    "model.vocab_size": "data.vocab_size",
    "model.added_tokens": "data.add_tokens",
    "data.seed": "seed_everything",
    "model.seed": "seed_everything",
}

ALONE = ("help", "config", "print_config", "seed_everything", "run_name", "run", "minutes")

# what Lightning is given by the command line, and the settings that plan and inspect are given
GIVEN = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule", "settings"}

# a verb -> the method of Trainer whose parameters are its flags, and the function of its own flags
OF_VERB: dict[str, tuple[str, str | None]] = {
    **{verb: (verb, None) for verb in ("fit", "validate", "test", "predict")},
    **{verb: ("fit", f"gpt2_lightning.{verb}.command.{verb}") for verb in ("plan", "inspect")},
}


def known_flags(verb: str) -> list[str]:
    """Return the flags of a verb that shares those of fit.

    Args:
        verb: fit, validate, test, predict, plan or inspect.

    Raises:
        LookupError: If they cannot be read from source files.
    """
    names = list(ALONE)
    for group, takers in GROUPS.items():
        names.append(group)
        for taker in takers:
            taken, whole = parameters(taker)
            names += [f"{group}.{name}" for name in taken]
            if whole:
                break
        else:
            raise LookupError(group)
    method, own = OF_VERB[verb]
    for taker in filter(None, (f"{GROUPS['trainer'][0]}.{method}", own)):
        taken, whole = parameters(taker)
        if not whole:
            raise LookupError(taker)
        names += [name for name in taken if name not in GIVEN]
    return [f"--{name}" for name in dict.fromkeys(names) if name not in LINKS]


def check_names(verb: str, words: list[str]) -> None:
    """Refuse a flag or a setting that there is not, before anything heavy is imported.

    Args:
        verb: fit, validate, test, predict, plan or inspect.
        words: Those after it.

    Raises:
        UsageError: If a flag is unknown, or a config file is none of the verb's. Values, and what
            lies below a flag that takes a class (``--trainer.callbacks.patience``), are the
            parser's to check; so are flags that others set.
    """
    words = with_recipes(with_underscores(words))
    flags = [
        word.partition("=")[0].removesuffix("+")
        for word in words
        # argparse takes a word with a blank for a value
        if word.startswith("--") and " " not in word
    ]
    if "--" in flags or "--help" in flags or "-h" in words:
        return
    try:
        known = known_flags(verb)
    except (LookupError, OSError, SyntaxError, ValueError):
        return
    # the parser knows which are lists, to which a + adds
    check_config_files(words, [*known, *(f"{flag}+" for flag in known)])
    groups = [f"--{group}" for group in GROUPS]
    for flag in flags:
        parent = flag.rpartition(".")[0]
        while parent and parent not in known:
            parent = parent.rpartition(".")[0]
        is_left = flag.removeprefix("--") in LINKS or (parent and parent not in groups)
        if flag not in known and not is_left:
            raise no_such_flag(flag, known)
