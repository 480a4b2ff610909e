"""``evaluate``: perplexity, with all that is needed to compare it."""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gpt2_lightning.arguments import Parser, with_underscores
from gpt2_lightning.data.cache import cache_folder
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.scored_text import JoinerName, ScoredText
from gpt2_lightning.data.token_store import store_name
from gpt2_lightning.data.tokenizer import save_tokenizer_files, tokenizer_files
from gpt2_lightning.errors import UsageError
from gpt2_lightning.inference.card import Card, as_dict, as_lines, write_json
from gpt2_lightning.inference.checkpoint import load_model
from gpt2_lightning.inference.comparison import compare
from gpt2_lightning.inference.device import DtypeName, place
from gpt2_lightning.inference.drawn_samples import DrawnSamples, draw_samples
from gpt2_lightning.inference.evaluation import EvaluatedSplit, Protocol
from gpt2_lightning.inference.evaluation import evaluate as score_model
from gpt2_lightning.inference.processes import Processes
from gpt2_lightning.inference.published import ProtocolName
from gpt2_lightning.inference.reference import CAUSES, check, wanted_figures
from gpt2_lightning.inference.run_folder import data_settings
from gpt2_lightning.inference.scoring import Score
from gpt2_lightning.inference.text_model import TextModel
from gpt2_lightning.quiet import quieten

HOW_IT_IS_CUT = {"cleaning", "blocks", "block_size"}
DATA_FLAGS = {"source", "subset", "revision", "text_column"} | HOW_IT_IS_CUT
# The text that published figures are of.
PUBLISHED_TEXT = {"source": "Salesforce/wikitext", "subset": "wikitext-2-raw-v1"}


def evaluate(
    model: str,
    data: dict[str, Any],
    split: EvaluatedSplit = "test",
    protocol: ProtocolName = "sliding",
    context: int | None = None,
    stride: int | None = None,
    joiner: JoinerName | None = None,
    against: str | None = None,
    reference: bool = False,
    samples: int = 0,
    batch_size: int = 8,
    dtype: DtypeName = "fp32",
    device: str = "auto",
    revision: str | None = None,
    output: str | None = None,
) -> bool:
    """Score a text with a model, and print a card that says what was measured and how.

    Args:
        model: Run folder such as lightning_logs/version_0 (its best model), .ckpt, folder in
            Hugging Face format, or Hub id.
        data: The text, by the names of WikiTextDataModule's arguments. What is left out is as the
            run was trained with, if the model is one.
        split: Of the source; all is the whole of a source that has no splits.
        protocol: How the text is scored. disjoint: rows joined, windows of --context side by side.
            sliding: windows that move on by --stride, each token scored once with the most context
            that allows. articles: one by one, detokenised, after an end-of-text, as
            lm-evaluation-harness does. training: the blocks and cleaning of training.
        context: Tokens of a window; null is the model's positions.
        stride: Tokens by which a sliding window moves on; null is half the context.
        joiner: What stands between rows: newlines (two of them, as in the literature) or nothing.
            Null joins WikiText's rows with two newlines and leaves other text as it is.
        against: A second model, scored on the same articles; the difference in bits per byte comes
            with its 95 % interval.
        reference: Score the model as its published figures were, and put both side by side.
        samples: Draw so many samples, too, and measure their variety, repetition, endings, and the
            longest run that they have copied from the training split.
        batch_size: Windows at a time.
        dtype: Type of the weights.
        device: auto, cpu, cuda, cuda:1, mps.
        revision: Branch, tag or commit of --model on the Hub.
        output: Write the card to this file, as JSON.

    Returns:
        False if a published figure was not met, otherwise True.

    Raises:
        UsageError: If model, text and protocol do not go together.
    """
    if batch_size < 1:
        raise UsageError(f"--batch_size {batch_size}: it has to be 1 or more.")
    if samples < 0 or (samples and (reference or against)):
        raise UsageError(
            f"--samples {samples}: "
            + (
                "it has to be 0 or more."
                if samples < 0
                else "it goes with one model, without --reference and --against."
            )
        )
    file = _output_file(output)
    asked = Protocol(protocol, context, stride, joiner)
    asked.check()
    if against is not None and protocol != "articles":
        raise UsageError(
            f"--against: --protocol {protocol} scores one long text; how sure a difference is can "
            "be told over articles. Choose --protocol articles."
        )
    if reference and (against or split != "test" or asked != Protocol("sliding")):
        raise UsageError(
            "--reference: the published figures say how the text is scored. Leave --split, "
            "--protocol, --context, --stride, --joiner and --against out."
        )
    wanted = wanted_figures(model) if reference else []
    quieten()
    processes = Processes.join()
    console = Console(quiet=processes.rank > 0)
    document: dict[str, Any]
    met = True
    try:
        with processes.sharing_mistakes():
            loaded = _load(model, revision, device, dtype, "--model")
            other = _load(against, None, device, dtype, "--against") if against else None

        def run(
            loaded: TextModel, name: str, split: EvaluatedSplit, protocol: Protocol
        ) -> tuple[Card, Score, ScoredText]:
            with _progress(name, show=processes.rank == 0) as advance:
                return score_model(
                    loaded,
                    name,
                    _datamodule(data, loaded),
                    split,
                    protocol,
                    dtype=dtype,
                    batch_size=batch_size,
                    processes=processes,
                    advance=advance,
                )

        if reference:
            findings = []
            for row in wanted:
                of_row = Protocol(row.protocol, row.context, row.stride)
                card, _, _ = run(loaded, model, "test", of_row)
                findings.append((check(row, card, dtype), card))
                _say(console, str(findings[-1][0]))
            met = all(finding.agrees for finding, _ in findings)
            if not met:
                _say(console, "\n".join(["Usual causes:", *(f"- {cause}" for cause in CAUSES)]))
            document = {
                "reference": [
                    asdict(finding) | {"card": as_dict(card)} for finding, card in findings
                ]
            }
        else:
            card, score, text = run(loaded, model, split, asked)
            _print(console, card)
            document = as_dict(card)
            if samples and processes.rank == 0:
                drawn = draw_samples(
                    loaded,
                    text,
                    _datamodule(data, loaded),
                    count=samples,
                    batch_size=batch_size,
                )
                _print_samples(console, drawn)
                document["samples"] = asdict(drawn)
            if against is not None and other is not None:
                _check_comparable(model, card)
                second, second_score, _ = run(other, against, split, asked)
                _print(console, second)
                _check_comparable(against, second)
                difference = compare(score, second_score, text.counts.bytes)
                low, high = difference.interval
                _say(
                    console,
                    f"difference in bits per byte: {difference.bits_per_byte:+.4f} "
                    f"(95 % of resampled articles: {low:+.4f} to {high:+.4f})\n"
                    + difference.verdict(model, against),
                )
                document |= {"against": as_dict(second), "difference": asdict(difference)}
    finally:
        processes.leave()
    if file is not None and processes.rank == 0:
        write_json(document, file)
    return met


def _output_file(output: str | None) -> Path | None:
    if output is None:
        return None
    file = Path(output).expanduser()
    folder = file.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"--output {output}: there is no folder {folder} for it.")
    if file.exists() and not file.is_file():
        raise UsageError(f"--output {output}: it is no file. Give one, such as card.json.")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--output {output}: {folder} cannot be written to. Choose another.")
    return file.resolve()


def _load(name: str, revision: str | None, device: str, dtype: DtypeName, flag: str) -> TextModel:
    loaded = load_model(name, revision, flag=flag)
    place(loaded.model, device, dtype)
    return loaded


def _datamodule(data: dict[str, Any], loaded: TextModel) -> WikiTextDataModule:
    """Return the source with the model's own tokenizer, which it loads from a folder."""
    files = tokenizer_files(loaded.tokenizer)
    folder = cache_folder(data.get("cache_dir")) / "tokenizers" / store_name(files)
    save_tokenizer_files(files, folder)
    return WikiTextDataModule(**data, tokenizer=str(folder))


@contextmanager
def _progress(name: str, *, show: bool) -> Iterator[Callable[[int, int], None]]:
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not show) as progress:
        task = progress.add_task(f"Scoring with {name}", total=None)

        def advance(tokens: int, total: int) -> None:
            progress.update(task, advance=tokens, total=total)

        yield advance


def _check_comparable(name: str, card: Card) -> None:
    if card.bits_per_byte is None:
        raise UsageError(
            f"--against: bits per byte say nothing of {name} on this text, since its tokenizer, or "
            f"--data.cleaning {card.cleaning}, loses text. Compare models whose tokenizers are "
            "byte-level, on text as it is."
        )
    if card.articles == 1:
        raise UsageError("--against: the text has one article; the comparison needs several.")


def _say(console: Console, text: str) -> None:
    # as it is: a path may hold what rich takes for markup
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _print(console: Console, card: Card) -> None:
    for label, value in as_lines(card):
        _say(console, f"{label:18}{value}")
    _say(console, "")


def _print_samples(console: Console, drawn: DrawnSamples) -> None:
    quality = drawn.quality
    rows = {
        "samples": f"{drawn.count} of at most {drawn.max_new_tokens} tokens; {drawn.sampling}",
        "distinct n-grams": f"{_share(quality.distinct_2)} of 2, {_share(quality.distinct_3)} of 3",
        "repeated 4-grams": _share(quality.repeated_4),
        "ended": f"{_share(quality.ended)} by themselves",
        "longest copy": "- (no training split in this source)"
        if quality.longest_copy is None
        else f"{quality.longest_copy} tokens stand one after another in the training split",
    }
    for label, value in rows.items():
        _say(console, f"{label:18}{value}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def main(words: list[str]) -> None:
    """Parse the words and run the verb.

    Raises:
        SystemExit: With code 1 if a published figure was not met.
    """
    words = with_underscores(words)
    parser = Parser(prog="gpt2_lightning evaluate", description=evaluate.__doc__)
    parser.add_argument("--config", action="config", help="YAML file of these flags.")
    parser.add_function_arguments(evaluate, skip={"data", "reference"})
    parser.add_argument(
        "--reference",
        type=bool,
        nargs="?",
        const=True,
        default=False,
        help="Score the model as its published figures were, and put both side by side.",
    )
    parser.add_class_arguments(WikiTextDataModule, "data", skip=_unused(), instantiate=False)
    parser.set_defaults({"data.source": None})
    options = _parsed(parser, words)
    trained = data_settings(options["model"])
    if options["data"]["source"] is not None:  # another text: what the run did to it remains
        trained = {key: trained[key] for key in trained if key in HOW_IT_IS_CUT}
    trained = {key: trained[key] for key in trained if key in DATA_FLAGS}
    parser.set_defaults({f"data.{key}": value for key, value in trained.items()})
    options = _parsed(parser, words)
    if options["data"]["source"] is None and options["reference"]:
        options["data"] |= PUBLISHED_TEXT
    if options["data"]["source"] is None:
        raise UsageError(
            f"--data.source: which text? --model {options['model']} is no run folder whose text "
            "could be taken. Give a file, a folder, a Hub id such as Salesforce/wikitext with "
            "--data.subset wikitext-2-raw-v1, or builtin."
        )
    if not evaluate(**options):
        raise SystemExit(1)


def _parsed(parser: Parser, words: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = parser.parse_args(words).as_dict()
    del options["config"]
    return options


def _unused() -> set[str]:
    return set(inspect.signature(WikiTextDataModule).parameters) - DATA_FLAGS - {"cache_dir"}
