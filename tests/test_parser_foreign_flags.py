"""Flags of neighbouring tools: taken where they mean the same, else refused with ours named."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gpt2_lightning.cli import main
from tests.command_line import Mistake

GREEDY = ("--do_sample=false", "--prompt=the old river was built")


def texts_of(model: Path, *words: str) -> list[dict[str, Any]]:
    main(["generate", f"--model={model}", *words, "--output=out.jsonl"])
    return [json.loads(line) for line in Path("out.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        (["--length", "5"], ["--max_new_tokens=5"]),
        (["--max-tokens=5"], ["--max_new_tokens=5"]),
        (["--n=2", "--length=5"], ["--num_return_sequences=2", "--max_new_tokens=5"]),
        (["--num_samples", "2", "--k=3"], ["--num_return_sequences=2", "--top_k=3"]),
    ],
)
def test_names_of_other_tools_mean_the_same(
    opinionated_model: Path, foreign: list[str], ours: list[str]
) -> None:
    prompt = "--prompt=the river"
    assert texts_of(opinionated_model, prompt, *foreign) == texts_of(
        opinionated_model, prompt, *ours
    )


def test_max_length_counts_the_prompt(opinionated_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(opinionated_model)
    prompts = ["the old river was built", "a bridge"]
    tokens = [len(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    assert tokens[0] != tokens[1]
    flags = [f"--prompt={prompt}" for prompt in prompts]
    found = texts_of(opinionated_model, *flags, "--max_length=40", "--num_return_sequences=2")
    assert [row["prompt"] for row in found] == [prompts[0]] * 2 + [prompts[1]] * 2
    alone = [
        row
        for prompt, count in zip(flags, tokens, strict=True)
        for row in texts_of(
            opinionated_model,
            prompt,
            f"--max_new_tokens={40 - count}",
            "--num_return_sequences=2",
        )
    ]
    assert found == alone


def test_max_length_of_a_stream(
    opinionated_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = texts_of(opinionated_model, *GREEDY, "--max_length=30")
    capsys.readouterr()
    main(["generate", f"--model={opinionated_model}", *GREEDY, "--max_length=30", "--stream"])
    assert found[0]["text"] in capsys.readouterr().out


def test_lengths_that_contradict_each_other(opinionated_model: Path, mistake: Mistake) -> None:
    words = "generate", f"--model={opinionated_model}", *GREEDY
    message = mistake(*words, "--max_length=30", "--max_new_tokens=3")
    assert "--max_length: it counts the prompt's tokens, --max_new_tokens does not" in message
    message = mistake(*words, "--max_length=2")
    assert "--max_length 2: it counts the prompt, which has" in message
    message = mistake(*words, "--length=3", "--max_new_tokens=3")
    assert "--length: it is another name of --max_new_tokens. Give one of the two." in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "flag", "meant"),
    [
        ("generate", "--stop_token", "--stop"),
        ("generate", "--n_predict", "--max_new_tokens"),
        ("fit", "--lr", "--model.learning_rate"),
        ("fit", "--learning-rate", "--model.learning_rate"),
        ("fit", "--batch_size", "--data.batch_size"),
        ("fit", "--epochs", "--trainer.max_epochs"),
        ("fit", "--num_train_epochs", "--trainer.max_epochs"),
        ("fit", "--output_dir", "--trainer.default_root_dir"),
        ("fit", "--model_name_or_path", "--model.pretrained"),
        ("fit", "--seed", "--seed_everything"),
        ("plan", "--gradient_accumulation_steps", "--trainer.accumulate_grad_batches"),
    ],
)
def test_flags_of_other_tools_name_ours(mistake: Mistake, verb: str, flag: str, meant: str) -> None:
    message = mistake(verb, flag, "5")
    assert message.endswith(f"there is no such flag. Did you mean {meant}?")
