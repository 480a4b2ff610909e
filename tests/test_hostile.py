"""Folders and files that mean harm: nothing in them runs, nothing leads out, nothing grows."""

import ast
import io
import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gpt2_lightning.cli import main
from gpt2_lightning.run_folder import remember_settings
from tests.command_line import CALM, Mistake, fine_tuning, fit
from tests.corpus import wiki_rows

PACKAGE = Path(__file__).parents[1] / "gpt2_lightning"
CANARY = Path("canary")
CODE = """
from pathlib import Path
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer
Path("canary").touch()
class Config(GPT2Config): model_type = "evil"
class Model(GPT2LMHeadModel): config_class = Config
class Tokenizer(GPT2Tokenizer): pass
from lightning.pytorch import Callback
class Evil(Callback): pass
def generate(*args, **kwargs): Path("canary").touch()
"""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
pytestmark = pytest.mark.slow  # every verb meets every damage

# every verb that takes a model, given one that stands in ./evil
VERBS = {
    "check": ("fetch", "--check=evil"),
    "fit": ("fit", "--model.pretrained=evil", "--data.source=builtin", *CALM),
    "tokenizer": ("fit", "--data.tokenizer=evil", "--data.source=builtin", *CALM),
    "validate": ("validate", "--model.pretrained=evil", "--data.source=builtin", *CALM),
    "predict": ("predict", "--model.pretrained=evil", "--data.prompts=prompts.txt", *CALM),
    "plan": ("plan", "--model.pretrained=evil", "--data.source=builtin"),
    "inspect": ("inspect", "--model.pretrained=evil", "--data.source=builtin"),
    "generate": ("generate", "--model=evil", "--prompt=a"),
    "evaluate": ("evaluate", "--model=evil", "--data.source=builtin"),
    "export": ("export", "--model=evil", "--to=exported"),
    "serve": ("serve", "--model=evil", "--port=0"),
}
# those that read weights
READERS = ("check", "fit", "generate", "evaluate", "export", "serve")


@pytest.fixture
def evil(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model folder of another's in ./evil, someone who says yes to everything, and a canary."""
    shutil.copytree(tiny_model, "evil")
    Path("prompts.txt").write_text("a\n", encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"y\n" * 10_000)))
    yield Path("evil")
    assert not CANARY.exists()
    assert not Path("exported").exists()


def change(file: Path, **values: Any) -> None:
    """Change entries of a JSON file."""
    settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(settings | values), encoding="utf-8")


def own_code(folder: Path) -> None:
    """Give a folder a type of model and a tokenizer that only its own code knows."""
    (folder / "evil.py").write_text(CODE, encoding="utf-8")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(CODE, encoding="utf-8")
    change(
        folder / "config.json",
        model_type="evil",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    )
    change(
        folder / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", None]},
    )


@pytest.mark.parametrize("verb", VERBS)
def test_code_of_a_folder_is_never_run(evil: Path, mistake: Mistake, verb: str) -> None:
    own_code(evil)
    message = mistake(*VERBS[verb])
    assert "brings Python code of its own, which is never run here" in message
    assert "trust_remote_code" not in message


def test_code_beside_a_usual_model(evil: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind = json.loads((evil / "config.json").read_text(encoding="utf-8"))["model_type"]
    own_code(evil)
    change(evil / "config.json", model_type=kind)
    main([*VERBS["generate"], "--max_new_tokens=2"])
    main([*VERBS["check"]])
    assert "evil: a model, complete." in capsys.readouterr().out


def calls() -> Iterator[tuple[str, ast.Call]]:
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield f"{file.name}:{node.lineno}", node


def test_no_call_lets_a_library_run_what_it_reads() -> None:
    needed = {
        "from_pretrained": ("trust_remote_code", False),
        "from_config": ("trust_remote_code", False),
        "load": ("weights_only", True),  # torch's
    }
    seen = set()
    for where, call in calls():
        assert isinstance(call.func, ast.Attribute)
        name, of = call.func.attr, ast.unparse(call.func.value)
        if name not in needed or (name == "load" and of != "torch"):
            continue
        key, value = needed[name]
        given = {word.arg: word.value for word in call.keywords}
        assert key in given, where
        assert isinstance(given[key], ast.Constant), where
        assert given[key].value is value, where  # type: ignore[attr-defined] # seen a line above
        seen.add(name)
    assert seen == set(needed)


def test_transformers_reads_others_models_in_one_place() -> None:
    readers = {where.partition(":")[0] for where, call in calls() if _is_reader(call)}
    # the second one loads tensors that are already read into a model of shapes
    assert readers == {"pretrained.py", "pickle_weights.py"}


def _is_reader(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "from_pretrained"


# --- paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", READERS)
@pytest.mark.parametrize("name", ["../../../../etc/passwd", "/etc/passwd", "..\\x", "a/../../b"])
def test_no_shard_lies_outside(evil: Path, mistake: Mistake, verb: str, name: str) -> None:
    (evil / WEIGHTS).unlink()
    change(evil / INDEX, weight_map={"transformer.wte.weight": name})
    assert f"{INDEX} names {name!r}, which is no file of the folder" in mistake(*VERBS[verb])


@pytest.mark.parametrize("verb", READERS)
def test_no_link_leads_outside(evil: Path, mistake: Mistake, verb: str) -> None:
    Path("secret.txt").write_text("a\nb\n", encoding="utf-8")
    (evil / "vocab.txt").symlink_to(Path("secret.txt").absolute())
    message = mistake(*VERBS[verb])
    assert "vocab.txt is a link that leads out of the folder, to " in message


def test_links_inside_and_into_the_hubs_cache(tiny_model: Path) -> None:
    for folder, kept in (("linked", "models--a--b/blobs"), ("inner", "inner/kept")):
        shutil.copytree(tiny_model, kept)
        Path(folder).mkdir(exist_ok=True)
        for file in tiny_model.iterdir():
            Path(folder, file.name).symlink_to(Path(kept, file.name).absolute())
        main(["generate", f"--model={folder}", "--prompt=a", "--max_new_tokens=1"])


def test_no_tokenizer_file_lies_outside(evil: Path, mistake: Mistake) -> None:
    change(evil / "tokenizer_config.json", fast_tokenizer_files=["../x/tokenizer.4.0.json"])
    assert "names '../x/tokenizer.4.0.json', which is no file" in mistake(*VERBS["generate"])


@pytest.mark.parametrize("verb", READERS)
def test_an_adapter_leads_to_another_model(evil: Path, mistake: Mistake, verb: str) -> None:
    change(evil / "adapter_config.json", base_model_name_or_path="evil/other")
    message = mistake(*VERBS[verb])
    assert "it is an adapter (LoRA) of evil/other" in message
    assert "merge_and_unload" in message


def test_weights_by_another_name(evil: Path, mistake: Mistake) -> None:
    change(evil / "config.json", transformers_weights="adapter_model.bin")
    assert "names 'adapter_model.bin' as its weights" in mistake(*VERBS["generate"])


# --- damage, said alike by every verb -------------------------------------------------------------


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def other_shape(file: Path) -> None:
    save_file({"transformer.wte.weight": torch.zeros(2, 2)}, file)


@pytest.mark.parametrize("verb", READERS)
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda it: cut(it / WEIGHTS), f"{WEIGHTS} is cut short"),
        (lambda it: (it / WEIGHTS).write_text("<html>"), f"{WEIGHTS} is damaged"),
        (lambda it: other_shape(it / WEIGHTS), "the weights lack transformer."),
        (lambda it: change(it / "config.json", n_layer=3), "the weights lack transformer.h.2"),
        (lambda it: change(it / "config.json", n_layer=10**9), "asks for 1,000,000,000 layers"),
        (lambda it: (it / "config.json").write_text("[" * 10_000), "config.json cannot be read"),
        (lambda it: (it / "config.json").write_text(" " * 2_000_000), "has 2,000,000 bytes"),
    ],
    ids=["cut", "a page", "other weights", "a layer more", "a billion layers", "brackets", "large"],
)
def test_damage_is_said_alike(
    evil: Path, mistake: Mistake, verb: str, damage: Callable[[Path], Any], said: str
) -> None:
    damage(evil)
    message = mistake(*VERBS[verb])
    assert said in message
    assert "evil: " in message


@pytest.mark.parametrize("verb", READERS)
@pytest.mark.parametrize("listed", [{}, {"weight_map": []}, {"weight_map": {}}, []])
def test_a_damaged_shard_list(evil: Path, mistake: Mistake, verb: str, listed: Any) -> None:
    (evil / WEIGHTS).unlink()
    (evil / INDEX).write_text(json.dumps(listed), encoding="utf-8")
    assert f"{INDEX} lists no files of weights: it is damaged" in mistake(*VERBS[verb])


@pytest.mark.parametrize("verb", [*READERS, "plan", "inspect", "tokenizer"])
def test_settings_that_are_nested_too_deeply(evil: Path, mistake: Mistake, verb: str) -> None:
    text = (evil / "config.json").read_text(encoding="utf-8").rstrip().removesuffix("}")
    # Python's parser takes 900 levels, and transformers, which copies them, does not
    (evil / "config.json").write_text(f'{text}, "x": {"[" * 900}{"]" * 900}}}', encoding="utf-8")
    assert "evil: config.json cannot be read (its lists or objects are nested too deeply" in (
        mistake(*VERBS[verb])
    )


@pytest.mark.parametrize("verb", [*READERS, "plan"])
@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_models_that_are_no_causal_ones(evil: Path, mistake: Mistake, verb: str, kind: str) -> None:
    (evil / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    message = mistake(*VERBS[verb])
    assert f"evil: config.json is of type {kind}, which is no causal language model." in message
    assert "Only GPT-2-like models are supported" in message


def test_a_tokenizer_of_two_hundred_megabytes(evil: Path, mistake: Mistake) -> None:
    with (evil / "tokenizer.json").open("wb") as stream:
        stream.truncate(200_000_000)  # takes no room on the disk
    for verb in ("check", "fit", "tokenizer", "generate"):
        assert "tokenizer.json has 200,000,000 bytes" in mistake(*VERBS[verb])
    (evil / "tokenizer.json").write_text("[" * 1_000_000, encoding="utf-8")
    assert "no tokenizer was found there" in mistake(*VERBS["check"])


def test_a_large_tokenizer_config(evil: Path, mistake: Mistake) -> None:
    with (evil / "tokenizer_config.json").open("wb") as stream:
        stream.truncate(20_000_000)
    assert "tokenizer_config.json has 20,000,000 bytes" in mistake(*VERBS["check"])


# --- pickles --------------------------------------------------------------------------------------


class Harm:
    """Unpickled without care, it writes the canary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY.absolute()}",)


@pytest.mark.parametrize("kind", ["zip", "old"])
def test_a_checkpoint_that_is_a_trap(mistake: Mistake, evil: Path, kind: str) -> None:
    Path("run/checkpoints").mkdir(parents=True)
    for file in (Path("trap.ckpt"), Path("run/checkpoints/last.ckpt")):
        torch.save({"state_dict": Harm()}, file, _use_new_zipfile_serialization=kind == "zip")
    for words in (
        ("generate", "--model=trap.ckpt", "--prompt=a"),
        ("generate", "--model=run", "--prompt=a"),
        ("evaluate", "--model=trap.ckpt", "--data.source=builtin"),
        ("export", "--model=trap.ckpt", "--to=exported"),
        ("fit", "--ckpt_path=trap.ckpt", *CALM),
        ("fit", "--ckpt_path=run", *CALM),
    ):
        message = mistake(*words)
        # in the old format torch has no archive: such a file counts as cut short
        named = "trap.ckpt" in " ".join(words)
        old = "it is no checkpoint" if named else "checkpoints"
        assert ("could run code" if kind == "zip" else old) in message
        assert "weights_only" not in message


def test_a_sharded_checkpoint_that_is_a_trap(mistake: Mistake, evil: Path) -> None:
    Path("sharded").mkdir()
    metas: list[dict[str, Any]] = [{"state_dict": Harm()}, {"hf_config": {}}]
    for meta in metas:
        torch.save(meta, "sharded/meta.pt")
        Path("sharded/.metadata").write_bytes(pickle.dumps(Harm()))
        message = mistake("generate", "--model=sharded", "--prompt=a")
        assert "could run code" in message
        assert "weights_only" not in message


def test_a_checkpoint_with_a_type_of_its_own(mistake: Mistake) -> None:
    config = {"model_type": "evil", "auto_map": {}}
    brought: dict[str, Any] = {"tokenizer_files": {}}
    torch.save({"hf_config": config, "state_dict": {}, "WikiTextDataModule": brought}, "a.ckpt")
    message = mistake("generate", "--model=a.ckpt", "--prompt=a")
    assert "of type evil, which transformers" in message


# --- a run folder of another's --------------------------------------------------------------------


@pytest.fixture(scope="module")
def a_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that was made elsewhere, by somebody else."""
    home = tmp_path_factory.mktemp("elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        Path("a.txt").write_text("".join(wiki_rows(articles=24)), encoding="utf-8")
        run = fit(*fine_tuning(Path("a.txt"), tiny_model), "--trainer.max_steps=2").absolute()
    logging.getLogger("gpt2_lightning").handlers.clear()
    return run


@pytest.fixture
def evil_run(a_run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The run of another's in ./run, with the text it was trained on, and a canary."""
    monkeypatch.syspath_prepend(Path.cwd())  # as `python -m` has it
    shutil.copytree(a_run, "run")
    shutil.copy(a_run.parents[1] / "a.txt", "a.txt")
    yield Path("run")
    assert not CANARY.exists()


HARM_IN_SETTINGS = {
    "a function": "[{class_path: os.system, init_args: {command: touch canary}}]",
    "a file of the run": "[{class_path: run.evil.Evil}]",
    "its name alone": "run.evil.Evil",
    "what is not there": "[{class_path: run.evil.Nothing}]",
    "inside Lightning's": "[{class_path: lightning.pytorch.callbacks.LambdaCallback, "
    "init_args: {setup: {class_path: os.system, init_args: {command: touch canary}}}}]",
    "a callable": "[{class_path: lightning.pytorch.callbacks.LambdaCallback, "
    "init_args: {setup: run.evil.generate}}]",
    "in a string": "'[{\"class\\x5fpath\": os.system, init_args: {command: touch canary}}]'",
    "through Lightning": "[{class_path: lightning.fabric.utilities.cloud_io._load}]",
    "another file": "more.yaml",
}


@pytest.mark.parametrize("harm", HARM_IN_SETTINGS.values(), ids=HARM_IN_SETTINGS)
@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_settings_of_another_run_no_code(
    evil_run: Path, mistake: Mistake, verb: str, harm: str
) -> None:
    (evil_run / "evil.py").write_text(CODE, encoding="utf-8")
    (evil_run / "more.yaml").write_text("- {class_path: run.evil.Evil}", encoding="utf-8")
    config = evil_run / "config.yaml"
    settings = config.read_text(encoding="utf-8")
    assert settings.count("  callbacks: null\n") == 1
    config.write_text(settings.replace("callbacks: null", f"callbacks: {harm}"), encoding="utf-8")
    message = mistake(verb, "--ckpt_path=run", *CALM)
    assert "which is not Lightning's and could run code" in message
    assert f"If you trust them, say so with --config {config.absolute()}." in message


def test_settings_that_a_checkpoint_brings_run_no_code(evil_run: Path, mistake: Mistake) -> None:
    checkpoint = torch.load(evil_run / "checkpoints" / "last.ckpt", weights_only=True)
    harm = {"class_path": "os.system", "init_args": {"command": "touch canary"}}
    checkpoint["hyper_parameters"]["architecture"] = harm
    torch.save(checkpoint, "alone.ckpt")
    message = mistake("validate", "--ckpt_path=alone.ckpt", *CALM)
    assert "its settings name os.system, whose code would run" in message


def test_classes_of_lightning_and_of_the_user(
    evil_run: Path, mistake: Mistake, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = "[{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: val/loss}}"
    config = evil_run / "config.yaml"
    settings = config.read_text(encoding="utf-8")
    config.write_text(settings.replace("callbacks: null", f"callbacks: {own}]"), encoding="utf-8")
    main(["validate", "--ckpt_path=run", *CALM])
    with_clock = f"{own}, {{class_path: tests.test_fit_time_limit.Clock}}]"
    text = settings.replace("callbacks: null", f"callbacks: {with_clock}")
    config.write_text(text, encoding="utf-8")
    assert "names tests.test_fit_time_limit.Clock" in mistake("validate", "--ckpt_path=run", *CALM)
    main(["validate", "--ckpt_path=run", f"--config={config}", *CALM])  # trusted for once
    remember_settings(text)  # as the run's own beginning does, on the user's machine
    main(["validate", "--ckpt_path=run", *CALM])


def test_a_run_with_a_class_of_the_user_goes_on(a_run: Path, tiny_model: Path) -> None:
    shutil.copy(a_run.parents[1] / "a.txt", "a.txt")
    own = "[{class_path: tests.signals.SendSignal, init_args: {number: 15, batch: 1000}}]"
    words = (*fine_tuning(Path("a.txt"), tiny_model), f"--trainer.callbacks={own}")
    fit(*words, "--trainer.max_steps=1")
    main(["fit", "--ckpt_path=last", *CALM])


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "facts",
    [
        DEEP,
        '{"best": "x"}',
        '{"best": {"step": "three"}}',
        '{"versions": [1]}',
        '{"machine": {"gpus": 5}}',
        '{"local": [5]}',
        '{"commands": [[5]]}',
        '{"outcome": {"best": 5}}',
        "[]",
    ],
)
def test_damaged_facts(
    evil_run: Path, mistake: Mistake, capsys: pytest.CaptureFixture[str], facts: str
) -> None:
    file = evil_run / "facts.json"
    file.write_text(facts, encoding="utf-8")
    assert f"{file}: it cannot be read" in mistake("report", "run")
    capsys.readouterr()
    main(["export", "--model=run/hf", "--to=exported"])
    assert f"{file} cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("model: x\n", "model is of type str"),
        ("model: {betas: 5}\n", "model.betas is of type int"),
        ("data: {source: [a]}\n", "data.source is of type list"),
        ("data: {cleaning: evil}\n", "data.cleaning is none of none, detokenize, tutorial"),
        ("- 1\n", "all of it is of type list"),
        ("trainer: !!python/object/apply:os.system [touch canary]\n", "cannot be read"),
    ],
)
def test_damaged_settings(
    evil_run: Path,
    mistake: Mistake,
    capsys: pytest.CaptureFixture[str],
    settings: str,
    said: str,
) -> None:
    file = evil_run / "config.yaml"
    file.write_text(settings, encoding="utf-8")
    assert said in mistake("evaluate", "--model=run")
    mistake("fit", "--ckpt_path=run", *CALM)
    capsys.readouterr()
    main(["export", "--model=run", "--to=exported"])
    if "cleaning" not in said:  # which the card repeats as it stands
        assert f"{file} cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"state_dict": None}, "it holds no state_dict"),
        ({"state_dict": {"model.x": "y"}}, "state_dict.model.x is of type str"),
        ({"tokenizer_files": None}, "it holds no tokenizer_files"),
        ({"tokenizer_files": [1]}, "tokenizer_files is of type list"),
        ({"tokenizer_files": {"..": ""}}, "has a file named '..'"),
        ({"tokenizer_files": {"../x": ""}}, "has a file named '../x'"),
        ({"format": "2"}, "format is of type str"),
        ({"format": 1, "WikiTextDataModule": {}}, "it holds no tokenizer_files"),
        ({"format": 1, "WikiTextDataModule": [1]}, "WikiTextDataModule is of type list"),
        ({"format": 1, "trainer_settings": [1]}, "trainer_settings is of type list"),
        ({"skipped_steps": None}, "it holds no skipped_steps"),
        ({"global_step": "x"}, "global_step is of type str"),
        ({"loops": 3}, "loops is of type int"),
        ({"callbacks": {"run.best": 5}}, "callbacks.run.best is of type int"),
        ({"hf_config": {"model_type": "gpt2", "n_layer": 9000}}, "asks for 9,000 layers"),
        ({"hf_config": {"model_type": "gpt2", "n_layer": 2}}, "are not those of its hf_config"),
        ({"hf_config": {"model_type": "gpt2", "n_embd": -1}}, "describes no model"),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_checkpoints_that_no_run_writes(
    evil_run: Path, mistake: Mistake, changes: dict[str, Any], said: str
) -> None:
    checkpoint = torch.load(evil_run / "checkpoints" / "last.ckpt", weights_only=True)
    for file in (evil_run / "checkpoints").iterdir():
        torch.save(checkpoint | changes, file)
    shutil.rmtree(evil_run / "hf")
    for words in (("generate", "--model=run", "--prompt=a"), ("fit", "--ckpt_path=run", *CALM)):
        assert said in mistake(*words)
