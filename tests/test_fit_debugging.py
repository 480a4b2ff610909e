"""Flags for a quick look: overfit_batches, finders, attention, a thread, samples."""

import html
import re
import threading
from pathlib import Path

import pytest
import yaml

from gpt2_lightning.cli import main
from gpt2_lightning.fit.samples import as_markdown
from tests.command_line import CALM, SMALL, Mistake, curves, fine_tuning, fit

RECIPES = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def everything() -> dict[str, tuple[int, bytes]]:
    """Return all that is in the current folder, with its times and content; but for the cache."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in Path().rglob("*")
        if path.parts[0] != "cache"
    }


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_dry_run_leaves_nothing(recipe: Path, wiki_folder: Path, tiny_model: Path) -> None:
    before = everything()
    model = "" if recipe.stem == "quickstart" else f"--model.pretrained={tiny_model}"
    words = [f"--config={recipe}", f"--data.source={wiki_folder}", "--data.subset=null", model]
    main(["fit", *filter(None, words), *SMALL, *CALM, "--trainer.fast_dev_run=true"])
    assert everything() == before


@pytest.mark.slow
@pytest.mark.parametrize("logger", ["CSVLogger", "false"])
def test_a_dry_run_leaves_an_earlier_run_as_it_is(
    logger: str, wiki_folder: Path, tiny_model: Path, mistake: Mistake
) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), "--trainer.max_steps=2")
    fit(*words, f"--trainer.logger={logger}")
    Path("prompts.txt").write_text("the river\n")
    before = everything()
    dry = (*CALM, "--trainer.fast_dev_run=true")
    main(["fit", *words, *dry, "--checkpoint.every_n_train_steps=1"])
    for verb in ("validate", "test"):
        main([verb, *dry, "--ckpt_path=last"])
    main(["predict", *dry, "--ckpt_path=last", "--data.prompts=prompts.txt"])
    message = mistake("fit", *dry, "--ckpt_path=last")
    assert "stands after step 2. It works without --ckpt_path." in message
    assert everything() == before


@pytest.mark.slow
def test_overfitting_one_batch(wiki_folder: Path, tiny_model: Path) -> None:
    run = fit(
        *fine_tuning(wiki_folder, tiny_model),
        *("--trainer.overfit_batches=1", "--trainer.max_epochs=150", "--model.dropout=0"),
        *("--trainer.check_val_every_n_epoch=150", "--model.learning_rate=1e-2"),
    )
    losses = curves(run)["train/loss"]
    assert len(losses) == 150
    assert losses[-1] < 0.05  # of other batches in each epoch it stays above 1
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["trainer"]["overfit_batches"] == 1


@pytest.mark.parametrize(
    ("finder", "instead"),
    [("LearningRateFinder", "--model.learning_rate 3e-4"), ("BatchSizeFinder", "plan --measure")],
)
def test_finders_are_refused_by_name(finder: str, instead: str, mistake: Mistake) -> None:
    message = mistake("fit", f"--trainer.callbacks+={finder}")
    assert f"--trainer.callbacks {finder}: " in message
    assert instead in message


@pytest.mark.parametrize("pretrained", [True, False])
def test_attention_that_is_not_there(
    pretrained: bool, wiki_folder: Path, tiny_model: Path, mistake: Mistake
) -> None:
    words = (
        fine_tuning(wiki_folder, tiny_model)
        if pretrained
        else (f"--data.source={wiki_folder}", "--data.vocab_size=300")
    )
    message = mistake("fit", *words, *CALM, "--model.attention=flash_attention_2")
    assert "--model.attention flash_attention_2: transformers cannot provide it here" in message
    assert "--model.attention sdpa" in message


@pytest.mark.slow
def test_a_fit_in_a_thread(wiki_folder: Path, tiny_model: Path) -> None:
    words = ["fit", *fine_tuning(wiki_folder, tiny_model), *CALM, "--trainer.max_steps=1"]
    thread = threading.Thread(target=main, args=(words,))  # an exception in it fails the test
    thread.start()
    thread.join()
    assert Path("lightning_logs/version_0/hf/model.safetensors").is_file()
    assert Path("lightning_logs/version_0/report.html").is_file()


@pytest.mark.parametrize(
    "text",
    [
        "# not a title\n__init__ and <stdio.h>\nend",
        "```\ncode\n```\n`one` ````four````",
        "\n\n  * an item\n\n    deeper | a | b\n~~~\n&amp; <script>x</script>",
    ],
)
# said of the html5lib that tensorboard carries, when it is imported
@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")
def test_tensorboard_shows_a_sample_as_it_is(text: str) -> None:
    from tensorboard.plugin_util import markdown_to_safe_html

    rows = [{"prompt": "__a__ ```", "seed": seed, "text": text} for seed in (0, 1)]
    page = markdown_to_safe_html(as_markdown(rows))
    shown = [html.unescape(code) for code in re.findall(r"<code>(.*?)</code>", page, re.DOTALL)]
    assert shown == ["__a__ ```\n", f"{text}\n", f"{text}\n"]
