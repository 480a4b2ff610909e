"""Every YAML that is shipped: it opens with what a reader asks first, and it parses."""

import math
import re
from pathlib import Path

import pytest
import yaml

from gpt2_lightning.cli import main
from tests.command_line import curves, fit

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
OVERLAYS = sorted((ROOT / "configs/scale").glob("*.yaml"))
RECIPES = [config for config in CONFIGS if config not in OVERLAYS]


def header(config: Path) -> str:
    lines = config.read_text(encoding="utf-8").splitlines()
    comments = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return "\n".join(line.removeprefix("#").strip() for line in comments)


def test_there_are_configs() -> None:
    names = {config.relative_to(ROOT / "configs").as_posix() for config in CONFIGS}
    assert names >= {"quickstart.yaml", "tutorial.yaml", "wikitext2.yaml", "wikitext103.yaml"}
    assert {f"scale/{name}.yaml" for name in ("ddp", "fsdp", "bf16", "multi_node")} <= names


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_a_config_opens_with_what_a_reader_asks(config: Path) -> None:
    words = header(config)
    for title in ("Hardware:", "Time:", "Expect:", "Start:"):
        assert re.search(rf"^{title}", words, re.MULTILINE), title
    start = words[words.index("Start:") :]
    assert "-m gpt2_lightning fit --config" in start
    assert f"--config {config.relative_to(ROOT)}" in start


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_a_config_parses_and_every_value_arrives(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(config), "--print_config"])
    assert ended.value.code == 0
    parsed = yaml.safe_load(capsys.readouterr().out)
    given = yaml.safe_load(config.read_text(encoding="utf-8"))

    def check(given: object, parsed: object, path: str) -> None:
        if isinstance(given, dict):
            assert isinstance(parsed, dict), path
            for key, value in given.items():
                check(value, parsed[key], f"{path}.{key}")
        else:
            assert given == parsed, path

    check(given, parsed, config.stem)


def test_a_recipe_goes_by_its_name_unless_a_file_has_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def parsed(*words: str) -> dict[str, dict[str, object]]:
        with pytest.raises(SystemExit):
            main(["fit", *words, "--print_config"])
        settings: dict[str, dict[str, object]] = yaml.safe_load(capsys.readouterr().out)
        return settings

    settings = parsed("--config", "finetune", "-c=scale/bf16")
    assert settings["model"]["learning_rate"] == 5e-5
    assert settings["trainer"]["precision"] == "bf16-mixed"
    Path("finetune").write_text("model: {learning_rate: 1.0}\n", encoding="utf-8")
    assert parsed("--config=finetune")["model"]["learning_rate"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda config: config.stem)
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda config: config.stem)
def test_every_recipe_takes_every_overlay(
    recipe: Path, overlay: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(recipe), "--config", str(overlay), "--print_config"])
    assert ended.value.code == 0
    parsed = yaml.safe_load(capsys.readouterr().out)
    laid_over = yaml.safe_load(overlay.read_text(encoding="utf-8"))["trainer"]
    for name, value in laid_over.items():
        if name != "strategy" or isinstance(value, str):
            assert parsed["trainer"][name] == value
        else:
            assert parsed["trainer"][name]["class_path"] == value["class_path"]
    recipes = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    assert parsed["model"]["learning_rate"] == recipes["model"]["learning_rate"]


@pytest.mark.slow
def test_the_quickstart_learns() -> None:
    run = fit(
        f"--config={ROOT / 'configs/quickstart.yaml'}",
        "--model.architecture={layers: 1, heads: 2, width: 64}",
        "--trainer.max_epochs=1",
        "--samples.enabled=false",
    )
    columns = curves(run)
    assert columns["val/loss"][0] == pytest.approx(math.log(2048), abs=0.1)
    assert columns["val/bits_per_byte"][-1] < 3.0 < columns["val/bits_per_byte"][0]
    assert columns["train/loss"][-1] < columns["train/loss"][0] - 0.5
