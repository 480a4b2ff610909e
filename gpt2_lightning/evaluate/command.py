"""``evaluate``: perplexity, and everything that is needed to compare it."""

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gpt2_lightning.data.articles import JoinerName
from gpt2_lightning.errors import UsageError
from gpt2_lightning.evaluate.protocol import EvaluatedSplit, EvaluatedText, Protocol, ProtocolName
from gpt2_lightning.parser import Parser, summary
from gpt2_lightning.startup import heavy_imports
from gpt2_lightning.storage import check_replaceable

if TYPE_CHECKING:  # heavy imports wait until the words are known to be right
    from gpt2_lightning.evaluate.screen import Scorer


CARDS = ('{\n  "model": ', '{\n  "reference": ')  # how the files begin that --output writes


def evaluate(
    model: str,
    data: EvaluatedText,
    split: EvaluatedSplit = "test",
    protocol: ProtocolName = "sliding",
    context: int | None = None,
    stride: int | None = None,
    joiner: JoinerName | None = None,
    against: str | None = None,
    reference: bool = False,
    samples: int = 0,
    batch_size: int = 8,
    dtype: Literal["fp32", "bf16"] = "fp32",
    device: str = "auto",
    revision: str | None = None,
    output: str | None = None,
) -> bool:
    """Score a text with a model, and print a card of what was measured and how.

    Args:
        model: Run folder such as lightning_logs/version_0 (its best model), .ckpt, folder in
            Hugging Face format, or Hub id.
        data: The text.
        split: Of the source; all is the whole of a source that has no splits.
        protocol: How the text is scored. disjoint: rows joined, windows of --context side by side.
            sliding: windows that move by --stride, each token scored once with the most context
            possible. articles: one by one, detokenised, after an end-of-text, as
            lm-evaluation-harness does. training: the blocks and cleaning of training.
        context: Tokens of a window; null is the model's positions.
        stride: Tokens by which a sliding window moves; null is half the context.
        joiner: Between rows: newlines (two of them, as in the literature) or nothing. Null joins
            WikiText's rows with two newlines and leaves other text as it is.
        against: A second model, scored on the same articles; the difference in bits per byte is
            printed with its 95 % interval.
        reference: Score the model as its published figures were, and compare both.
        samples: Number of samples to draw, too, to measure their variety, repetition, endings, and
            the longest run that they have copied from the training split.
        batch_size: Windows at a time.
        dtype: Type of the weights.
        device: auto, cpu, cuda, cuda:1, mps.
        revision: Branch, tag or commit of --model on the Hub.
        output: Write the card to this file, as JSON; an earlier card there is replaced.

    Returns:
        False if a published figure was not reproduced, otherwise True.

    Raises:
        UsageError: If model, text and protocol do not fit together.
    """
    if batch_size < 1:
        raise UsageError(f"--batch_size {batch_size}: must be >= 1.")
    if samples < 0:
        raise UsageError(f"--samples {samples}: must be >= 0.")
    if samples and (reference or against):
        raise UsageError(
            f"--samples {samples}: it needs one model. Leave --reference and --against out."
        )
    file = _output_file(output)
    how = Protocol(protocol, context, stride, joiner)
    how.check()
    if against is not None and protocol != "articles":
        raise UsageError(
            f"--against: --protocol {protocol} scores one long text, and an interval needs several "
            "articles. Choose --protocol articles."
        )
    if reference and (against or split != "test" or how != Protocol("sliding")):
        raise UsageError(
            "--reference: the published figures determine how the text is scored. Leave --split, "
            "--protocol, --context, --stride, --joiner and --against out."
        )
    data = _named_text(data.as_trained(model), model, reference=reference)

    with heavy_imports():
        from gpt2_lightning.evaluate.card import write_json
        from gpt2_lightning.evaluate.scoring import Processes
        from gpt2_lightning.evaluate.screen import EvaluateScreen, Scorer
        from gpt2_lightning.logs import quieten

    quieten()
    processes = Processes.join()
    screen = EvaluateScreen(shown=processes.rank == 0)
    scorer = Scorer(data, split, dtype, device, batch_size, processes, screen)
    try:
        if reference:
            document = _reference(scorer, model, revision)
        elif against:
            document = _against(scorer, model, revision, against, how)
        else:
            document = _alone(scorer, model, revision, how, samples)
    finally:
        processes.leave()
    if file is not None and processes.rank == 0:
        write_json(document, file)
    return all(finding["agrees"] for finding in document.get("reference", []))


def _named_text(data: EvaluatedText, model: str, *, reference: bool) -> EvaluatedText:
    if data.source is None and reference:
        # the text of the published figures
        return replace(data, source="Salesforce/wikitext", subset="wikitext-2-raw-v1")
    if data.source is None:
        raise UsageError(
            f"--data.source: no text is given, and --model {model} is no run folder, whose text "
            "would be used. Give a file, a folder, a Hub id such as Salesforce/wikitext with "
            "--data.subset wikitext-2-raw-v1, or builtin."
        )
    return data


def _alone(
    scorer: "Scorer", model: str, revision: str | None, protocol: Protocol, samples: int
) -> dict[str, Any]:
    from gpt2_lightning.evaluate.quality import draw_samples

    with scorer.processes.sharing_errors():
        loaded = scorer.load(model, revision)
    card, _, text = scorer.score(loaded, model, protocol)
    scorer.screen.card(card)
    document = asdict(card)
    if samples and scorer.processes.rank == 0:
        data = scorer.datamodule(loaded)
        drawn = draw_samples(loaded, text, data, count=samples, batch_size=scorer.batch_size)
        scorer.screen.samples(drawn)
        document["samples"] = asdict(drawn)
    return document


def _against(
    scorer: "Scorer", model: str, revision: str | None, against: str, protocol: Protocol
) -> dict[str, Any]:
    from gpt2_lightning.evaluate.compare import compare
    from gpt2_lightning.evaluate.screen import loses_text

    with scorer.processes.sharing_errors():
        loaded = scorer.load(model, revision)
        other = scorer.load(against, flag="--against")
        scorer.check_comparable(loaded, model)
    cards, scores = [], []
    for it, name in ((loaded, model), (other, against)):
        card, score, text = scorer.score(it, name, protocol)
        scorer.screen.card(card)
        if card.bits_per_byte is None:
            raise loses_text(name, card.cleaning)
        cards.append(card)
        scores.append(score)
    first, second = cards
    difference = compare(scores[0], scores[1], text.counts.bytes)
    scorer.screen.difference(difference, model, against)
    return asdict(first) | {"against": asdict(second), "difference": asdict(difference)}


def _reference(scorer: "Scorer", model: str, revision: str | None) -> dict[str, Any]:
    from gpt2_lightning.evaluate.compare import check, published_figures

    wanted = published_figures(model)
    with scorer.processes.sharing_errors():
        loaded = scorer.load(model, revision)
    findings = []
    for row in wanted:
        protocol = Protocol(row.protocol, row.context, row.stride)
        card, _, _ = scorer.score(loaded, model, protocol)
        finding = check(row, card, scorer.dtype)
        scorer.screen.finding(finding)
        findings.append(asdict(finding) | {"card": asdict(card)})
    if not all(finding["agrees"] for finding in findings):
        scorer.screen.causes()
    return {"reference": findings}


def _output_file(output: str | None) -> Path | None:
    if output is None:
        return None
    file = Path(output).expanduser()
    folder = file.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"--output {output}: the folder {folder} does not exist. Create it first.")
    if file.exists() and not file.is_file():
        raise UsageError(f"--output {output}: it is not a file. Give one, such as card.json.")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--output {output}: {folder} cannot be written to. Choose another.")
    check_replaceable(file, "--output", lambda text: text.startswith(CARDS))
    return file.resolve()


def main(words: list[str]) -> None:
    """Parse the words and run the verb.

    Raises:
        SystemExit: With code 1 if a published figure was not reproduced.
    """
    parser = Parser(prog="gpt2_lightning evaluate", description=summary(evaluate))
    parser.add_argument("--config", action="config", help="YAML file of these flags.")
    parser.add_function_arguments(evaluate, as_group=False, skip={"data", "reference"})
    parser.add_argument(
        "--reference",
        type=bool,
        nargs="?",
        const=True,
        default=False,
        help="Score the model as its published figures were, and compare both.",
    )
    parser.add_class_arguments(EvaluatedText, "data")
    options = parser.parse_words(words)
    data = EvaluatedText(**options.pop("data"))
    if not evaluate(data=data, **options):
        raise SystemExit(1)
