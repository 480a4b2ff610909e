"""The names of fit's flags, read from source files, are those of the parser."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2_lightning.cli import LIGHTNING_VERBS
from gpt2_lightning.errors import UsageError
from gpt2_lightning.fit import flags
from gpt2_lightning.fit.flags import check_names, known_flags
from gpt2_lightning.fit.settings import CommandLine, FitSettings
from gpt2_lightning.fit.train import GPT2CLI, run
from gpt2_lightning.inspect.command import inspect
from gpt2_lightning.inspect.command import main as run_inspect
from gpt2_lightning.parser import option_strings
from gpt2_lightning.plan.command import main as run_plan
from gpt2_lightning.plan.command import plan
from gpt2_lightning.startup import parameters
from tests.command_line import Mistake

VERBS = ("fit", "validate", "test", "predict", "plan", "inspect")

CALLBACK = "--trainer.callbacks=lightning.pytorch.callbacks.EarlyStopping"


class _Parsed(Exception):
    """Stands for all that comes after a parser was built."""


@pytest.fixture(scope="module")
def real() -> dict[str, list[str]]:
    """Return the flags that the parsers have, by verb."""
    found: dict[str, list[str]] = {}

    def keep(cli: Any, *_: Any) -> None:
        found.update({verb: option_strings(it) for verb, it in cli._subcommand_parsers.items()})
        raise _Parsed

    def keep_own(line: CommandLine, verb: str, words: list[str], parser: Any) -> None:
        found[words[0]] = option_strings(parser)
        raise _Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPT2CLI, "parse_arguments", keep)
        patch.setattr(CommandLine, "__init__", keep_own)
        for verb in LIGHTNING_VERBS:
            with pytest.raises(_Parsed):
                run([verb])
        own: dict[str, Callable[..., Any]] = {"plan": plan, "inspect": inspect}
        for verb, function in own.items():
            with pytest.raises(_Parsed):
                FitSettings(verb, [verb], function)
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_the_names_are_those_of_the_parser(verb: str, real: dict[str, list[str]]) -> None:
    flags_alone = [it for it in real[verb] if it.startswith("--")]
    named = [it for it in flags_alone if not it.endswith(("+", ".help"))]
    assert sorted(known_flags(verb)) == sorted(named)
    for flag in flags_alone:
        check_names(verb, [flag, "{}", f"{flag}={{}}", flag.replace("_", "-")])


@pytest.mark.parametrize(
    "words",
    [
        [CALLBACK, "--trainer.callbacks.patience=3", "--trainer.callbacks.init_args.patience", "3"],
        ["--trainer.logger.save_dir=a", "--trainer.callbacks+=Timer", "--trainer.plugins+", "a"],
        ["--samples.prompts", "--a line", "-c", "{model: null}", "--print_config=skip_null"],
        ["--trainer.nope=1", "--help"],
        ["--trainer.max_epochs=3", "--", "--trainer.nope"],
        ["a.txt", "--data.block-size", "-1"],
        ["--model.block_size=3", "--data.seed", "1"],
    ],
)
def test_what_it_cannot_tell_is_left_to_the_parser(words: list[str]) -> None:
    check_names("fit", words)


RUNS: dict[str, Callable[[list[str]], object]] = {
    "fit": lambda words: run(["fit", *words]),
    "validate": lambda words: run(["validate", *words]),
    "plan": run_plan,
    "inspect": run_inspect,
}


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("fit", ["--trainer.max_epoch", "3"]),
        ("fit", ["--model.learning-rat=1e-4", "--trainer.nope=1"]),
        ("fit", ["--model.architecture.layer=2"]),
        ("fit", ["--model.sampling.topk=2"]),
        ("fit", ["--trainer.callback+=Timer"]),
        ("fit", ["--trainer.loggerhelp"]),
        ("fit", ["--checkpoint.save_topk=1"]),
        ("fit", ["--lr=1"]),
        ("fit", ["--run_nam", "a"]),
        ("fit", ["--config=a.yaml", "--data.sorce=a"]),
        ("fit", ["--config=wrong.yaml"]),
        ("validate", ["--verbos=1"]),
        ("plan", ["--nonsense", "1"]),
        ("plan", ["--mesure"]),
        ("inspect", ["--data.sorce", "a"]),
    ],
)
def test_messages_are_those_of_the_parser(verb: str, words: list[str], mistake: Mistake) -> None:
    Path("a.yaml").write_text("trainer: {callbacks+: [Timer]}\n", encoding="utf-8")
    Path("wrong.yaml").write_text("model: {learning_rat: 1}\n", encoding="utf-8")
    with pytest.raises(UsageError) as quick:
        check_names(verb, words)
    with pytest.raises(UsageError) as real:
        RUNS[verb](words)
    assert str(quick.value) == str(real.value)
    assert mistake(verb, *words) == f"error: {real.value}"


def test_sources_that_are_not_as_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    for taker in ("lightning.pytorch.nowhere.Trainer", "lightning.pytorch.trainer.trainer.Nobody"):
        with pytest.raises(LookupError):
            parameters(taker)
        monkeypatch.setitem(flags.GROUPS, "trainer", [taker])
        check_names("fit", ["--trainer.nope=1"])
    # **kwargs of which nobody says where they go
    monkeypatch.setitem(flags.GROUPS, "trainer", ["gpt2_lightning.fit.checkpoints.RunCheckpoint"])
    check_names("fit", ["--trainer.nope=1"])
