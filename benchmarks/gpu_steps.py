"""What is measured on a GPU: each function is one step of benchmarks.gpu, in a process of its own.

All of them run on a CPU too, with a small model: so the kit is tried where no GPU is.
"""

import contextlib
import gc
import io
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback, Trainer
from torch.profiler import ProfilerActivity, profile

from benchmarks.memory import high_water
from benchmarks.prepare import write_text
from gpt2_lightning.cli import main as command
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.model.decoding import generate
from gpt2_lightning.model.gpt2 import Architecture, training_flops_per_token
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.model.optim import build_adamw, clip_gradient_norm
from gpt2_lightning.model.sampling import SamplingOptions

Figures = dict[str, Any]
Who = Literal["ours", "Trainer", "bare loop"]

# layers, heads, width
SIZES = {
    "tiny": (2, 2, 64),
    "small": (12, 12, 768),
    "medium": (24, 16, 1024),
    "large": (36, 20, 1280),
    "xl": (48, 25, 1600),
}
VOCABULARY = 50257
WARM_UP = 3  # steps that are not counted: kernels are chosen, and compiled, in them
COPIES = 20  # of the built-in text, with other digits


@dataclass(frozen=True)
class Setting:
    """Where and on what the steps run.

    Attributes:
        device: ``cuda`` or ``cpu``.
        size: Of the model (`SIZES`) that most steps train.
        block_size: Tokens of a block.
        batch_sizes: Blocks of a micro-batch that are tried.
        steps: Optimizer steps of a measurement, the first `WARM_UP` among them.
        seconds: Of each side in the comparison at equal time.
    """

    device: str = "cuda"
    size: str = "small"
    block_size: int = 1024
    batch_sizes: tuple[int, ...] = (8, 16, 32, 64)
    steps: int = 23
    seconds: float = 60.0

    @property
    def precision(self) -> str:
        """The trainer's: bf16-mixed where the device multiplies in it."""
        bf16 = self.device == "cuda" and torch.cuda.is_bf16_supported()
        return "bf16-mixed" if bf16 else "32-true"

    def name(self) -> str:
        """Return the card and torch's version, by which figures can be compared."""
        card = torch.cuda.get_device_name() if self.device == "cuda" else platform.machine()
        return f"{card} with torch {torch.__version__}"

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak_gb(self) -> float:
        """Return the most memory held: of the GPU, or of this process."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        return high_water()


class Clock(Callback):
    """Notes when the measured steps begin and end, and ends a run of the Trainer at its time."""

    def __init__(self, setting: Setting, limit: float = math.inf) -> None:
        self.setting, self.taken, self.begin, self.end = setting, 0, 0.0, 0.0
        self.limit, self.made = limit, time.perf_counter()

    def is_over(self) -> bool:
        """Tell whether the time is."""
        return time.perf_counter() - self.made > self.limit

    def tick(self) -> None:
        """Count a step."""
        self.taken += 1
        if self.taken == WARM_UP:
            self.setting.synchronize()
            self.begin = time.perf_counter()
        elif self.taken == self.setting.steps:
            self.setting.synchronize()
            self.end = time.perf_counter()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Count a step of ours."""
        self.tick()

    def rate(self, blocks: int) -> float:
        """Return tokens a second."""
        tokens = blocks * self.setting.block_size * (self.setting.steps - WARM_UP)
        return tokens / (self.end - self.begin)


@contextlib.contextmanager
def corpus(setting: Setting) -> Iterator[str]:
    """Give a text of some megabytes, in a folder that is the current one for the moment."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        copies = COPIES if setting.size != "tiny" else 1
        write_text(Path("text.jsonl"), "builtin", None, copies)
        yield "text.jsonl"


def prepared(setting: Setting, blocks: int, source: str) -> WikiTextDataModule:
    """Return the datamodule of a text, tokenized."""
    vocabulary = VOCABULARY if setting.size != "tiny" else 512
    data = WikiTextDataModule(
        source,
        vocab_size=vocabulary,
        block_size=setting.block_size,
        batch_size=blocks,
        cache_dir=str(Path(tempfile.gettempdir()) / "gpt2_lightning_gpu"),
    )
    data.prepare(["train", "validation"])
    data.setup("fit")
    return data


def build(setting: Setting, size: str, compiled: bool, checkpointing: bool = False) -> GPT2Module:
    """Return a module from scratch."""
    layers, heads, width = SIZES[size]
    torch.manual_seed(0)
    return GPT2Module(
        vocab_size=VOCABULARY if setting.size != "tiny" else 512,
        block_size=setting.block_size,
        architecture=Architecture(layers=layers, heads=heads, width=width),
        compile=compiled,
        gradient_checkpointing=checkpointing,
    )


def fit_with(setting: Setting, callback: Callback, module: GPT2Module, blocks: int) -> None:
    """Train a module of this project by Lightning, with nothing beside it but a callback."""
    with corpus(setting) as source:
        Trainer(
            accelerator=setting.device,
            devices=1,
            max_steps=setting.steps,
            precision=cast(Any, setting.precision),
            gradient_clip_val=1.0,
            limit_val_batches=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            callbacks=[callback],
        ).fit(module, prepared(setting, blocks, source))


def train_ours(
    setting: Setting, size: str, blocks: int, compiled: bool, checkpointing: bool = False
) -> float:
    """Return tokens a second of a run with this project's module and datamodule."""
    clock = Clock(setting)
    fit_with(setting, clock, build(setting, size, compiled, checkpointing), blocks)
    return clock.rate(blocks)


def trainer_of(
    setting: Setting,
    model: Any,
    data: WikiTextDataModule,
    blocks: int,
    ticks: Clock,
    **settings: Any,
) -> Any:
    """Return the transformers Trainer of a model on packed blocks, its own defaults else.

    Args:
        setting: Where it runs.
        model: A model of transformers.
        data: Whose training tokens are cut into rows.
        blocks: Rows of a micro-batch.
        ticks: Counts its steps.
        settings: Further ones of its `TrainingArguments`.
    """
    from datasets import Dataset
    from transformers import Trainer as HFTrainer
    from transformers import TrainerCallback, TrainingArguments, default_data_collator

    class Ticks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ticks.tick()
            control.should_training_stop |= ticks.is_over()

    ids, size = data.stores["train"].ids.tolist(), setting.block_size
    rows = [ids[at : at + size] for at in range(0, len(ids) - size, size)]
    return HFTrainer(
        model=model,
        args=TrainingArguments(
            output_dir="trainer",
            per_device_train_batch_size=blocks,
            bf16=setting.precision == "bf16-mixed",
            max_grad_norm=1.0,
            use_cpu=setting.device == "cpu",
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
        data_collator=default_data_collator,
        callbacks=[Ticks()],
    )


def train_with_trainer(setting: Setting, blocks: int, compiled: bool) -> float:
    """Return tokens a second of the transformers Trainer on packed blocks, its own defaults."""
    from transformers import GPT2Config, GPT2LMHeadModel

    clock = Clock(setting)
    layers, heads, width = SIZES[setting.size]
    with corpus(setting) as source:
        data = prepared(setting, blocks, source)
        config = GPT2Config(
            vocab_size=len(data.tokenizer),
            n_layer=layers,
            n_head=heads,
            n_embd=width,
            n_positions=setting.block_size,
        )
        settings = {"max_steps": setting.steps, "torch_compile": compiled}
        trainer_of(setting, GPT2LMHeadModel(config), data, blocks, clock, **settings).train()
    return clock.rate(blocks)


def train_bare(setting: Setting, blocks: int, compiled: bool) -> float:
    """Return tokens a second of a plain loop over the same loss, clipping and AdamW."""
    clock = Clock(setting)
    module = build(setting, setting.size, compiled).to(setting.device).train()
    module.configure_model()
    if compiled:
        module._compiled = torch.compile(module.model.base_model.forward)
    optimizer = build_adamw(
        module.named_parameters(),
        decayed=module.decayed,
        learning_rate=module.learning_rate,
        weight_decay=module.weight_decay,
        betas=module.betas,
        fused=True,
    )
    half = setting.precision == "bf16-mixed"
    shape = (blocks, setting.block_size + 1)
    for _ in range(setting.steps):
        vocabulary = module.model.config.vocab_size
        ids = torch.randint(0, vocabulary, shape, device=setting.device)
        batch = {"input_ids": ids[:, :-1], "targets": ids[:, 1:]}
        with torch.autocast(setting.device, torch.bfloat16, enabled=half):
            nats = module.nats(batch)
        (nats / batch["targets"].numel()).backward()
        clip_gradient_norm(list(module.parameters()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
    return clock.rate(blocks)


# --- the steps ----------------------------------------------------------------------------------


def machine(setting: Setting) -> Figures:
    """The card and its own rates of matrix products, in TFLOP/s."""
    found: Figures = {"torch": torch.__version__, "python": sys.version.split()[0]}
    if setting.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "card": properties.name,
            "GB": round(properties.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
        }
    size = 8192 if setting.device == "cuda" else 512
    for name in ("bfloat16", "float32"):
        a = torch.randn(size, size, device=setting.device, dtype=getattr(torch, name))
        seconds = []
        for _ in range(6):
            setting.synchronize()
            start = time.perf_counter()
            a @ a
            setting.synchronize()
            seconds.append(time.perf_counter() - start)
        found[f"TFLOP/s in {name}"] = round(2 * size**3 / statistics.median(seconds[1:]) / 1e12, 3)
    return found


def correctness(setting: Setting) -> Figures:
    """The tests that are marked `gpu`: how many passed, and the names of the others."""
    root = Path(__file__).parents[1]
    words = ["-m", "gpu", "-rfEs", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=root,
        capture_output=True,
        text=True,
        env=os.environ | {"GPU_TESTS_ON": setting.device},
    )
    lines = done.stdout.splitlines()
    kept = [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    return {"exit code": done.returncode, "outcome": lines[-1] if lines else "", "not passed": kept}


def training_speed(setting: Setting, who: Who, compiled: bool) -> Figures:
    """Tokens a second and memory by micro-batch, and the operations a second of the best."""
    rows: dict[str, Figures] = {}
    for blocks in setting.batch_sizes:
        gc.collect()  # accelerate's wrapped forward keeps the model before it in a cycle
        if setting.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            match who:
                case "ours":
                    rate = train_ours(setting, setting.size, blocks, compiled)
                case "Trainer":
                    rate = train_with_trainer(setting, blocks, compiled)
                case "bare loop":
                    rate = train_bare(setting, blocks, compiled)
        except torch.OutOfMemoryError:
            rows[str(blocks)] = {"out of memory": True}
            break
        rows[str(blocks)] = {"tokens/s": round(rate), "GB": round(setting.peak_gb(), 2)}
        print(json.dumps({"by micro-batch": rows}), flush=True)  # kept, should the time end
    module = build(setting, setting.size, compiled=False)
    module.configure_model()
    flops = training_flops_per_token(module.model, setting.block_size)
    best = max((row.get("tokens/s", 0) for row in rows.values()), default=0)
    return {"by micro-batch": rows, "best TFLOP/s": round(best * flops / 1e12, 3)}


def larger_models(setting: Setting, size: str) -> Figures:
    """A larger model at 8 blocks with checkpointing: measured, beside what `plan` predicts."""
    blocks = 8 if setting.size != "tiny" else 2
    layers, heads, width = SIZES[size if setting.size != "tiny" else "tiny"]
    printed = io.StringIO()
    with corpus(setting) as source, contextlib.redirect_stdout(printed):
        command(
            [
                "plan",
                f"--data.source={source}",
                f"--data.vocab_size={VOCABULARY if setting.size != 'tiny' else 512}",
                f"--data.block_size={setting.block_size}",
                f"--data.batch_size={blocks}",
                f"--model.architecture={{layers: {layers}, heads: {heads}, width: {width}}}",
                "--model.gradient_checkpointing=true",
                f"--trainer.accelerator={'gpu' if setting.device == 'cuda' else 'cpu'}",
                "--trainer.devices=1",
                f"--trainer.precision={setting.precision}",
                f"--trainer.max_steps={setting.steps}",
                "--json",
            ]
        )
    planned = json.loads(printed.getvalue())["memory"]["peak"] / 1e9
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    name = size if setting.size != "tiny" else "tiny"
    rate = train_ours(setting, name, blocks, compiled=False, checkpointing=True)
    return {
        "tokens/s": round(rate),
        "GB": round(setting.peak_gb(), 2),
        "GB by plan": round(planned, 2),
    }


def generation(setting: Setting) -> Figures:
    """New tokens a second for several prompts at once, beside transformers' own generate."""
    module = build(setting, setting.size, compiled=False)
    module.configure_model()
    # transformers' own wrapper of `to` hides its types
    model: Any = cast(Any, module.model).to(setting.device).eval()
    new = min(128, setting.block_size // 2)
    options = SamplingOptions(max_new_tokens=new, min_new_tokens=new, num_return_sequences=1)
    end = int(model.config.vocab_size) - 1
    found: Figures = {}
    for count in (1, 8, 64) if setting.size != "tiny" else (1, 4):
        prompts = [torch.randint(0, end, (16,)) for _ in range(count)]
        together = torch.stack(prompts).to(setting.device)

        def ours(prompts: list[torch.Tensor] = prompts) -> None:
            generate(model, prompts, options, end_of_text=end)

        def theirs(together: torch.Tensor = together) -> None:
            model.generate(
                together,
                attention_mask=torch.ones_like(together),
                do_sample=True,
                pad_token_id=end,
                min_new_tokens=new,
                max_new_tokens=new,
                top_k=50,
                top_p=0.95,
                temperature=0.7,
            )

        for name, draw in (("ours", ours), ("transformers", theirs)):
            draw()
            setting.synchronize()
            start = time.perf_counter()
            draw()
            setting.synchronize()
            found[f"{name}, {count}"] = round(count * new / (time.perf_counter() - start))
        print(json.dumps(found), flush=True)  # kept, should the time end
    return found


class Profiled(Callback):
    """Profiles some steps in the middle of a run."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.taken, self.seconds = setting, 0, 0.0
        kinds = [ProfilerActivity.CPU]
        if setting.device == "cuda":
            kinds.append(ProfilerActivity.CUDA)
        self.profiler = profile(activities=kinds)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Begin after the warm-up, end with the last step."""
        self.taken += 1
        if self.taken == WARM_UP:
            self.setting.synchronize()
            self.profiler.__enter__()
            self.seconds = -time.perf_counter()
        elif self.taken == self.setting.steps:
            self.setting.synchronize()
            self.seconds += time.perf_counter()
            self.profiler.__exit__(None, None, None)


SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::item")


def host_syncs(setting: Setting) -> Figures:
    """How often the host waits for the GPU in a step, and the share in which the GPU is busy."""
    watched = Profiled(setting)
    module = build(setting, setting.size, compiled=False)
    fit_with(setting, watched, module, setting.batch_sizes[0])
    events = watched.profiler.key_averages()
    steps = setting.steps - WARM_UP
    counts = {it.key: round(it.count / steps, 2) for it in events if it.key in SYNCS}
    # the operations that launch a kernel carry its time, too
    kernels = [it for it in events if it.device_type.name == "CUDA"]
    busy = sum(it.self_device_time_total for it in kernels) / 1e6
    return {"a step": counts, "busy share": round(busy / watched.seconds, 3)}


def time_to_quality(setting: Setting) -> Figures:
    """Validation nats of ours after equal seconds from scratch, and of the Trainer's model."""
    from transformers import AutoModelForCausalLM

    blocks, size = setting.batch_sizes[0], setting.block_size
    with corpus(setting) as source:
        data = prepared(setting, blocks, source)
        module = build(setting, setting.size, compiled=False)
        module.configure_model()
        module.model.save_pretrained("begin")
        data.tokenizer.save_pretrained("begin")
        command(
            [
                "fit",
                "--model.pretrained=begin",
                f"--data.source={source}",
                f"--data.block_size={size}",
                f"--data.batch_size={blocks}",
                f"--trainer.accelerator={'gpu' if setting.device == 'cuda' else 'cpu'}",
                "--trainer.devices=1",
                f"--trainer.precision={setting.precision}",
                "--model.learning_rate=6e-4",
                f"--minutes={setting.seconds / 60}",
                "--trainer.max_epochs=-1",
                "--trainer.enable_progress_bar=false",
                "--trainer.num_sanity_val_steps=1",
                "--samples.enabled=false",
            ]
        )
        # the Trainer has no limit of time: its steps are those that fit by its own speed, so that
        # its schedule, linear by default, comes to its end
        rate = train_with_trainer(setting, blocks, compiled=False)
        steps = max(1, int(setting.seconds * rate / (blocks * size)))
        other = AutoModelForCausalLM.from_pretrained("begin")
        clock = Clock(setting, setting.seconds)
        settings = {"max_steps": steps, "learning_rate": 6e-4}
        trainer_of(setting, other, data, blocks, clock, **settings).train()
        (run,) = Path("lightning_logs").glob("*")
        held_out = torch.tensor(data.stores["validation"].ids[: 64 * size].astype("int64"))
        chosen = AutoModelForCausalLM.from_pretrained(run / "hf")
        return {
            "ours, nats a token": plain_nats(chosen, held_out, size, setting.device),
            "Trainer, nats a token": plain_nats(other, held_out, size, setting.device),
            "Trainer, steps of its schedule": f"{clock.taken} of {steps}",
        }


@torch.no_grad()
def plain_nats(model: Any, ids: torch.Tensor, size: int, device: str) -> float:
    """Return nats per token of ids in windows of a size, by a plain loop."""
    model.to(device).eval()
    total = count = 0.0
    for at in range(0, len(ids) - 1, size):
        window = ids[at : at + size + 1].to(device)
        if len(window) < 2:
            break
        logits = model(window[None, :-1]).logits[0].float()
        total += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
        count += len(window) - 1
    return round(total / count, 4) if count else math.nan


Step = Callable[[Setting], Figures]

# name -> the measurement and the seconds that it needs on a GPU; the most valuable first
STEPS: dict[str, tuple[Step, float]] = {
    "machine": (machine, 10),
    "correctness": (correctness, 90),
    "ours": (partial(training_speed, who="ours", compiled=False), 45),
    "Trainer": (partial(training_speed, who="Trainer", compiled=False), 45),
    "ours, compiled": (partial(training_speed, who="ours", compiled=True), 75),
    "host syncs": (host_syncs, 25),
    "generate": (generation, 30),
    "bare loop": (partial(training_speed, who="bare loop", compiled=False), 30),
    "Trainer, compiled": (partial(training_speed, who="Trainer", compiled=True), 75),
    "xl": (partial(larger_models, size="xl"), 60),
    "medium": (partial(larger_models, size="medium"), 40),
    "large": (partial(larger_models, size="large"), 50),
    "time to quality": (time_to_quality, 160),
}

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
