"""SamplingOptions: how text is drawn, in plain values."""

import math
from dataclasses import dataclass, field

from gpt2_lightning.errors import UsageError

DEFAULT_SAMPLES = 3  # of a prompt, where they differ


@dataclass
class SamplingOptions:
    """How text is drawn, by transformers' names; the defaults are the tutorial's.

    Attributes:
        max_new_tokens: Tokens to write at most.
        min_new_tokens: Tokens to write before the end-of-text may come; a stop string may come
            earlier.
        do_sample: Draw at random; otherwise always take the likeliest token.
        temperature: Below 1 sharpens the distribution, above 1 flattens it.
        top_k: Draw from the k likeliest tokens; 0 for all.
        top_p: Draw from the likeliest tokens that make up this probability; 1 for all.
        min_p: Draw from tokens that are at least this share as likely as the likeliest; 0 for all.
        typical_p: Draw from the tokens whose surprisal is closest to the expected one and that make
            up this probability; 1 for all.
        repetition_penalty: Above 1 makes each token that the text already has less likely.
        no_repeat_ngram_size: No run of so many tokens comes twice, the prompt's own included; 0
            forbids none.
        num_beams: Keep this many continuations at a time and return the likeliest as a whole; only
            without sampling.
        stop: Strings before which a sample ends.
        num_return_sequences: Samples for each prompt; null is 3, or 1 without sampling.
        seed: Seed of a prompt's first sample; the next ones have the next seeds.
    """

    max_new_tokens: int = 100
    min_new_tokens: int = 0
    do_sample: bool = True
    temperature: float = 0.7
    top_k: int = 50
    top_p: float = 0.95
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_beams: int = 1
    stop: list[str] = field(default_factory=list)
    num_return_sequences: int | None = None
    seed: int = 0

    def check(self, group: str = "") -> None:
        """See that the options make sense, each alone and together.

        Args:
            group: What stands before their names in flags, for messages: ``model.sampling.``.

        Raises:
            UsageError: If one is out of its range, or two contradict each other.
        """
        count = self.samples_per_prompt
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, ">= 1"),
            "min_new_tokens": (
                0 <= self.min_new_tokens <= self.max_new_tokens,
                f"in 0..{self.max_new_tokens} (--{group}max_new_tokens)",
            ),
            "temperature": (
                1e-6 <= self.temperature < math.inf,  # logits over less are no numbers any more
                f">= 0.000001 (--{group}do_sample false for greedy)",
            ),
            "top_k": (self.top_k >= 0, ">= 0"),
            "top_p": (0 < self.top_p <= 1, "> 0 and <= 1"),
            "min_p": (0 <= self.min_p <= 1, "in 0..1"),
            "typical_p": (0 < self.typical_p <= 1, "> 0 and <= 1"),
            "repetition_penalty": (
                0 < self.repetition_penalty < math.inf,
                "> 0; 1 changes nothing, 1.2 is common",
            ),
            "no_repeat_ngram_size": (self.no_repeat_ngram_size >= 0, ">= 0"),
            "num_beams": (self.num_beams >= 1, ">= 1"),
            "stop": (all(self.stop), "without empty strings"),
            "num_return_sequences": (count >= 1, ">= 1"),
            "seed": (0 <= self.seed <= 2**63 - count, f"in 0..{2**63 - count}"),
        }
        for name, (holds, range_) in rules.items():
            if not holds:
                raise UsageError(f"--{group}{name} {getattr(self, name)}: must be {range_}.")
        if self.do_sample and self.num_beams > 1:
            raise UsageError(
                f"--{group}num_beams {self.num_beams}: beams look for the likeliest text, without "
                f"drawing. Add --{group}do_sample false."
            )
        if not self.do_sample and count > self.num_beams:
            raise UsageError(
                f"--{group}num_return_sequences {count}: without --{group}do_sample "
                + (
                    "all samples are the same; ask for 1."
                    if self.num_beams == 1
                    else f"there are as many as --{group}num_beams {self.num_beams}; ask for so "
                    "many at most."
                )
            )

    def unused(self) -> list[str]:
        """Return the flags that draw at random, where nothing is drawn and they are not default."""
        if self.do_sample:
            return []
        default = SamplingOptions()
        names = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed")
        return [
            f"--{name} {getattr(self, name)}"
            for name in names
            if getattr(self, name) != getattr(default, name)
        ]

    @property
    def samples_per_prompt(self) -> int:
        """How many samples each prompt has."""
        if self.num_return_sequences is not None:
            return self.num_return_sequences
        return DEFAULT_SAMPLES if self.do_sample else 1

    @property
    def seeds(self) -> list[int]:
        """The seeds of one prompt's samples."""
        return list(range(self.seed, self.seed + self.samples_per_prompt))
