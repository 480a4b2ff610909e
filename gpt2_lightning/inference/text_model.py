"""TextModel: a trained model and its tokenizer, which continue text."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypedDict, Unpack, overload

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gpt2_lightning.errors import UsageError
from gpt2_lightning.inference.drawing import draw, stream
from gpt2_lightning.inference.sample import Sample
from gpt2_lightning.model.sampling import SamplingOptions


class SamplingKeywords(TypedDict, total=False):
    """The fields of `SamplingOptions`, as keywords; the number of samples decides a type."""

    max_new_tokens: int
    min_new_tokens: int
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    num_beams: int
    stop: list[str]
    seed: int


@dataclass
class TextModel:
    """A language model, in eval mode, and its tokenizer.

        from gpt2_lightning import load

        model = load("lightning_logs/version_3")
        print(model.generate("Once upon a time", temperature=0.9, seed=7))

    Attributes:
        model: The language model.
        tokenizer: Its tokenizer.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @overload
    def generate(
        self,
        prompt: str,
        *,
        num_return_sequences: None = None,
        roll: bool = False,
        max_length: int | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: str,
        *,
        num_return_sequences: int,
        roll: bool = False,
        max_length: int | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> list[str]: ...

    @overload
    def generate(
        self,
        prompt: list[str],
        *,
        num_return_sequences: None = None,
        roll: bool = False,
        max_length: int | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> list[str]: ...

    @overload
    def generate(
        self,
        prompt: list[str],
        *,
        num_return_sequences: int,
        roll: bool = False,
        max_length: int | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> list[list[str]]: ...

    def generate(
        self,
        prompt: str | list[str],
        *,
        num_return_sequences: int | None = None,
        roll: bool = False,
        max_length: int | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> str | list[str] | list[list[str]]:
        """Continue a prompt, or several.

        Args:
            prompt: The text to continue, or a list of texts.
            num_return_sequences: Samples for each prompt; null is one, which comes without a list
                of its own.
            roll: Go on past the model's positions, with the last half of what it has seen.
            max_length: Tokens of prompt and text together at most, as in transformers; in the place
                of ``max_new_tokens``.
            options: How to draw: the fields of `SamplingOptions`.

        Returns:
            What the model wrote, without the prompt: a string for a prompt, a list of them for a
            list of prompts. With ``num_return_sequences``, a list in the place of each string.

        Raises:
            UsageError: If an option is out of its range, or the text exceeds the model's positions
                and it may not roll.
        """
        one = isinstance(prompt, str)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        count = 1 if num_return_sequences is None else num_return_sequences
        _check_lengths(max_length, options)
        asked = SamplingOptions(num_return_sequences=count, **options)
        samples = draw(self.model, self.tokenizer, prompts, asked, roll=roll, max_length=max_length)
        texts = [sample.text for sample in samples]
        if num_return_sequences is None:
            return texts[0] if one else texts
        of_each = [texts[start : start + count] for start in range(0, len(texts), count)]
        return of_each[0] if one else of_each

    def stream(
        self,
        prompt: str,
        *,
        roll: bool = False,
        max_length: int | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> Generator[str, None, Sample]:
        """Continue a prompt, a piece of text at a time.

        Args:
            prompt: The text to continue.
            roll: Go on past the model's positions, with the last half of what it has seen.
            max_length: Tokens of prompt and text together at most, as in transformers; in the place
                of ``max_new_tokens``.
            options: How to draw: the fields of `SamplingOptions`.

        Yields:
            The text as it comes: whole characters, and nothing of a stop string.

        Returns:
            The sample, as the generator's value.

        Raises:
            UsageError: If an option is out of its range or asks for beams, or the text exceeds the
                model's positions and it may not roll.
        """
        _check_lengths(max_length, options)
        asked = SamplingOptions(num_return_sequences=1, **options)
        return stream(self.model, self.tokenizer, prompt, asked, roll=roll, max_length=max_length)


def _check_lengths(max_length: int | None, options: SamplingKeywords) -> None:
    if max_length is not None and "max_new_tokens" in options:
        raise UsageError(
            f"max_length {max_length}: max_new_tokens {options['max_new_tokens']} says another "
            "length. Give one of the two: max_length counts the prompt's tokens, too."
        )
