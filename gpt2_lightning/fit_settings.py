"""FitSettings: what `fit` would be told, for the verbs that look before training."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from gpt2_lightning.contradictions import check_precision
from gpt2_lightning.lightning_cli import GPT2CLI
from gpt2_lightning.quiet import quieten


class FitSettings(GPT2CLI):
    """The flags of `fit`, and a verb's own beside them: parsed, filled in and checked.

    Nothing is built, so nothing is read, downloaded or written: that is the verb's to do.

    Attributes:
        values: The settings as `fit` would use them: ``trainer``, ``model``, ``data`` and so on.
        own: The verb's own flags, by name.
    """

    def __init__(self, verb: str, words: list[str], own: Callable[..., Any]) -> None:
        """Parse a command line.

        Args:
            verb: The verb's name, for --help and messages.
            words: The words after the verb.
            own: The verb's function: its first parameter takes these settings, the others are
                the verb's own flags, with its docstring for their help.

        Raises:
            UsageError: If a flag is unknown, or says what cannot be.
        """
        quieten()
        self._verb, self._own = verb, own
        super().__init__(["fit", *words], fit={"description": (own.__doc__ or "").splitlines()[0]})
        self.values = self.config.fit
        self.own = {name: self.values[name] for name in self._own_names}

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the one verb whose flags these are."""
        return {"fit": GPT2CLI.subcommands()["fit"]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the verb's own flags to those of `fit`."""
        super().add_arguments_to_parser(parser)
        self._own_names = parser.add_function_arguments(self._own, as_group=False, skip={1})
        for action in parser._actions:
            if action.dest in self._own_names and action.default is False:
                action.nargs, action.const = "?", True  # a bare --json will do

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the words under the verb's own name."""
        own = self._subcommand_parsers["fit"]
        own.prog = f"gpt2_lightning {self._verb}"
        own.usage = f"python -m gpt2_lightning {self._verb} [--config FILE] [flags]"
        super().parse_arguments(parser, args)

    def check_machine(self, trainer: Any) -> None:
        """Take any accelerator: a plan may be for another machine."""
        check_precision(trainer)

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def _set_seed(self) -> None:
        """Leave the generators alone."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Train nothing."""
