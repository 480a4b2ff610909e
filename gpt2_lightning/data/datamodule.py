"""WikiTextDataModule: a source of text in, loaders of blocks out."""

import json
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule
from rich.progress import (
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from transformers import PreTrainedTokenizerBase

from gpt2_lightning.data.articles import (
    SPLITTING_VERSION,
    DocumentsName,
    HeldOutChoice,
    Row,
    Rows,
    SplitName,
    as_articles,
    choose_held_out,
    split_rows,
)
from gpt2_lightning.data.batches import (
    AttendName,
    BlockName,
    Blocks,
    EvalBatches,
    PackedBlocks,
    PaddedBlocks,
    TrainBatches,
)
from gpt2_lightning.data.cleaning import CleaningName, get_cleaner
from gpt2_lightning.data.prompts import PromptBatches, read_prompts
from gpt2_lightning.data.readers import FORMATS
from gpt2_lightning.data.remote_store import RemoteStores
from gpt2_lightning.data.sources import open_source
from gpt2_lightning.data.token_store import TokenStore, store_name
from gpt2_lightning.data.token_text import Decode, TextAssembler, decoder
from gpt2_lightning.data.tokenizer import (
    cache_folder,
    load_tokenizer,
    lost_by_tokens,
    save_tokenizer_files,
    tokenizer_digest,
    tokenizer_files,
    train_tokenizer,
)
from gpt2_lightning.data.tokenizing import write_token_store
from gpt2_lightning.errors import UsageError
from gpt2_lightning.storage import write_text
from gpt2_lightning.untrusted import read_json

log = logging.getLogger(__name__)

DEFAULT_VOCAB_SIZE = 8192  # tokens of a trained BPE; enough for some tens of megabytes of text

SPLITS_OF_STAGE: dict[str, list[SplitName]] = {
    "fit": ["train", "validation"],
    "validate": ["validation"],
    "test": ["test"],
    "predict": [],
}


class WikiTextDataModule(LightningDataModule):
    """Text of any source, cleaned, tokenized once, and cut into blocks.

    Args:
        source: ``builtin`` (the Python language reference that CPython carries), the path of a
            file or folder (parquet, jsonl, csv, txt, wiki.train.raw, ``save_to_disk``), or a Hub
            id such as ``Salesforce/wikitext``.
        subset: Folder below the source, or configuration on the Hub (``wikitext-2-raw-v1``).
        revision: Branch, tag or commit on the Hub.
        text_column: Column that holds the text, in parquet, jsonl and csv files.
        documents: Which part of a text file is a document, followed by an end-of-text: the whole
            ``file``, or each ``line`` (tweets, jokes).
        validation_source: File, folder or pattern of the validation split, looked up as a path and
            then inside ``source``, and left out of the training text. Null goes by the names of
            the source's files; ``none`` holds out a part of the training text whatever the names.
        test_source: The same of the test split.
        cleaning: ``none``; ``detokenize`` undoes WikiText's spaces and ``@-@`` marks;
            ``tutorial`` drops all punctuation, as the tutorial does.
        tokenizer: Name or folder. Null uses the model's own; from scratch, a byte-level BPE is
            trained on the training split.
        tokenizer_revision: Branch, tag or commit on the Hub; null uses the model's.
        add_tokens: Text file of tokens to add to the tokenizer's vocabulary, one a line, without
            white space; the model's embedding gets a row for each. Not with a BPE to be trained.
        vocab_size: Tokens of the BPE to train, by default 8192; ignored if a tokenizer is loaded.
        blocks: ``pack`` fills every block with text; ``pad`` puts one row in each, as the
            tutorial does.
        attend: ``block``: a token sees all before it in its block, as in GPT-2's own training; or
            ``document``: only those of its own document, whose positions begin at 0. Not with
            ``pad``, whose blocks hold a row each.
        shift_blocks: Cut the training text at other places in each epoch after the first: with
            several epochs of little text, less is learned by heart. Not with ``pad``.
        block_size: Tokens in a block.
        batch_size: Blocks in a micro-batch of one process.
        prompts: File of prompts for ``predict``: text, one a line, or jsonl.
        cache_dir: Folder of the token stores, by default ``~/.cache/gpt2_lightning``.
        remote_cache: Address of token stores that many machines share, such as
            ``s3://bucket/tokens`` (whatever fsspec knows). What is prepared here is published
            there; what is there is not prepared again, and is read in shards.
        remote_cache_gb: GB of these shards that a machine keeps in its ``cache_dir``.
        seed: Determines the order of the blocks; the command line sets it to ``seed_everything``.
    """

    def __init__(
        self,
        source: str = "builtin",
        subset: str | None = None,
        revision: str | None = None,
        text_column: str = "text",
        documents: DocumentsName = "file",
        validation_source: str | None = None,
        test_source: str | None = None,
        cleaning: CleaningName = "none",
        tokenizer: str | None = None,
        tokenizer_revision: str | None = None,
        add_tokens: str | None = None,
        vocab_size: int | None = None,
        blocks: BlockName = "pack",
        attend: AttendName = "block",
        shift_blocks: bool = False,
        block_size: int = 1024,
        batch_size: int = 8,
        prompts: str | None = None,
        cache_dir: str | None = None,
        remote_cache: str | None = None,
        remote_cache_gb: float = 20.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # plain values only, so that a checkpoint loads with weights_only=True
        self.save_hyperparameters(logger=False)
        for name, value in (("block_size", block_size), ("batch_size", batch_size)):
            if value < 1:
                raise UsageError(f"--data.{name} {value}: must be >= 1.")
        if shift_blocks and blocks == "pad":
            raise UsageError(
                "--data.shift_blocks true: with --data.blocks pad each block is a row, which is "
                "not cut elsewhere. Leave it out, or take --data.blocks pack."
            )
        if attend == "document" and blocks == "pad":
            raise UsageError(
                "--data.attend document: with --data.blocks pad each block is a row already, and "
                "sees no other. Leave it out, or take --data.blocks pack."
            )
        self.attend = attend
        self.source = source
        self.subset = subset
        self.revision = revision
        self.text_column = text_column
        self.documents = documents
        self.validation_source = validation_source
        self.test_source = test_source
        self._opened: dict[SplitName, Rows] | None = None
        self._splits: dict[SplitName, Rows] | None = None
        self._rows_with_split: Callable[[], Iterator[tuple[SplitName, Row]]] | None = None
        self.cleaner = get_cleaner(cleaning)
        self.tokenizer_name = tokenizer
        self.tokenizer_revision = tokenizer_revision
        self.add_tokens = add_tokens
        self.vocab_size = vocab_size or DEFAULT_VOCAB_SIZE
        self.blocks = blocks
        self.shift_blocks = shift_blocks
        self.block_size = block_size
        self.batch_size = batch_size
        self.prompts = prompts
        self.seed = seed
        self.cache_dir = cache_folder(cache_dir)
        self.remote: RemoteStores | None = None
        if remote_cache is not None:
            self.remote = RemoteStores(
                remote_cache, self.cache_dir / "remote", limit_gb=remote_cache_gb
            )
        self.stores: dict[SplitName, TokenStore] = {}
        self.held_out_from_train: list[SplitName] = []  # splits that the source does not have
        self._prepared: tuple[str, dict[SplitName, str]] | UsageError | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, after `setup`."""
        assert self._tokenizer is not None, "setup() has not been called"
        return self._tokenizer

    @property
    def decode(self) -> Decode:
        """Ids -> text, after `setup`."""
        return decoder(self.tokenizer)

    def assembler(self, prompt: Sequence[int], stop: Sequence[str]) -> TextAssembler:
        """Return an assembler of the text after a prompt; call `setup` first."""
        return TextAssembler(self.tokenizer, stop, after=prompt)

    @property
    def described(self) -> str:
        """The text, in words: its source and subset, and how it is cleaned."""
        subset = f", {self.subset}" if self.subset else ""
        return f"{self.source}{subset}, cleaning {self.cleaner.name}"

    # --- once, in one process -----------------------------------------------------------------

    def prepare_data(self) -> None:
        """Read the source, train the tokenizer if there is none, and write the token stores.

        Raises:
            UsageError: If the source cannot be read, or a split is empty.
        """
        stage = self.trainer.state.fn.value if self.trainer and self.trainer.state.fn else "fit"
        try:
            self.prepare(SPLITS_OF_STAGE[stage])
        except UsageError as error:
            if self.trainer is None or self.trainer.world_size == 1:
                raise
            self._prepared = error  # raised in `setup` by all ranks, so that none waits

    def prepare(self, wanted: list[SplitName]) -> None:
        """Write the tokenizer and the token stores of some splits, unless they are cached."""
        if self.prompts and not wanted:
            read_prompts(self.prompts)
        splits = self.splits(wanted) if wanted or self.tokenizer_name is None else {}
        tokenizer_name = self.tokenizer_name or self._train_tokenizer(splits)
        tokenizer = load_tokenizer(tokenizer_name, self.tokenizer_revision, self.add_tokens)
        names: dict[SplitName, str] = {}
        for split in wanted:
            names[split] = self._write_store(split, splits[split], tokenizer)
        self._prepared = (tokenizer_name, names)

    def splits(self, wanted: list[SplitName]) -> dict[SplitName, Rows]:
        """Return the source's splits, articles marked; missing ones are held out of training text.

        Args:
            wanted: The splits that are needed.

        Raises:
            UsageError: If the source does not exist, or has no such split.
        """
        splits = self._splits = self._splits or self._find_splits()
        for split in wanted:
            if split not in splits:
                raise UsageError(
                    f"--data.source {self.source}: it has no {split} split, and no training split "
                    f"to hold one out of. It has: {', '.join(splits)}."
                )
        return splits

    def open(self) -> dict[SplitName, Rows]:
        """Open the source with its own splits only.

        Raises:
            UsageError: If the source does not exist, or nothing in it can be read.
        """
        self._opened = self._opened or open_source(
            self.source,
            subset=self.subset,
            revision=self.revision,
            text_column=self.text_column,
            documents=self.documents,
            validation_source=self.validation_source,
            test_source=self.test_source,
        )
        return self._opened

    def share_source(self, other: "WikiTextDataModule") -> None:
        """Use the splits that another datamodule has found, so that the source is opened once.

        Args:
            other: One of the same source and splits; its cleaning and tokenizer may differ.
        """
        self._opened, self._splits, self._rows_with_split = (
            other._opened,
            other._splits,
            other._rows_with_split,
        )
        self.held_out_from_train = other.held_out_from_train

    def _find_splits(self) -> dict[SplitName, Rows]:
        found = self.open()
        splits = {name: as_articles(rows) for name, rows in found.items()}
        held_out: list[SplitName] = ["validation", "test"]
        missing = [name for name in held_out if name not in splits]
        # both are held out whatever is needed now, so that test text never was training text
        if missing and "train" in splits:
            splitting = split_rows(
                splits["train"], missing, self._held_out_choice(splits["train"], missing)
            )
            lacking = " and no ".join(missing)
            log.info("%s has no %s split: holding out %s.", self.source, lacking, splitting)
            splits |= splitting.rows
            self.held_out_from_train, self._rows_with_split = missing, splitting.rows_with_split
        return splits

    def _held_out_choice(self, rows: Rows, missing: list[SplitName]) -> HeldOutChoice:
        """Return which part of the training text goes to the missing splits, if possible cached."""
        name = store_name({"rows": rows.digest(), "missing": missing, "splits": SPLITTING_VERSION})
        file = self.cache_dir / "splits" / f"{name}.json"
        try:
            return HeldOutChoice(**read_json(file))
        except (OSError, ValueError, TypeError):  # not cached, or damaged
            choice = choose_held_out(rows, missing)
        write_text(file, json.dumps(asdict(choice)) + "\n")
        return choice

    def each_row(self, wanted: Collection[SplitName]) -> Iterator[tuple[SplitName, Row]]:
        """Yield the rows of some splits, each with its split; every file is read once."""
        from_train = {"train", *self.held_out_from_train} if self._rows_with_split else set()
        for split, rows in self.splits([]).items():
            if split in wanted and split not in from_train:
                yield from ((split, row) for row in rows)
        if self._rows_with_split and from_train & set(wanted):
            yield from (one for one in self._rows_with_split() if one[0] in wanted)

    def _train_tokenizer(self, splits: dict[SplitName, Rows]) -> str:
        if "train" not in splits:
            raise UsageError(
                f"--data.tokenizer: none was given, and {self.source} has no training split to "
                "train one on. Give a folder or a Hub id."
            )
        shaped_by = {
            "rows": splits["train"].digest(),
            "cleaning": [self.cleaner.name, self.cleaner.version],
            "vocab_size": self.vocab_size,
        }
        folder = self.cache_dir / "tokenizers" / store_name(shaped_by)
        if not folder.is_dir():
            log.info("Training a tokenizer of %d tokens.", self.vocab_size)
            texts = (self.cleaner.clean(row.text) for row in splits["train"])
            save_tokenizer_files(tokenizer_files(train_tokenizer(texts, self.vocab_size)), folder)
        return str(folder)

    def _text_bytes(self, split: SplitName, rows: Rows) -> int | None:
        """Return about how many bytes of text a split has; None where that shows at its end."""
        if split in self.held_out_from_train:
            return None
        plain = all(FORMATS.get(file.path.suffix) == "text" for file in rows.files)
        return sum(file.path.stat().st_size for file in rows.files) if plain else None

    def _write_store(self, split: SplitName, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> str:
        shaped_by = {
            "source": self.source,
            "subset": self.subset,
            "split": split,
            "rows": rows.digest(),
            "cleaning": [self.cleaner.name, self.cleaner.version],
            "tokenizer": tokenizer_digest(tokenizer),
            "unit": "article" if self.blocks == "pack" else "row",
        }
        # the same text under another path is the same store
        name = store_name({key: shaped_by[key] for key in shaped_by if key != "source"})
        folder = self.cache_dir / "tokens" / name
        if not folder.is_dir() and not (self.remote and self.remote.has(name)):
            columns = (
                *(SpinnerColumn(), TextColumn("{task.description}"), DownloadColumn()),
                *(TransferSpeedColumn(), TimeElapsedColumn(), TimeRemainingColumn()),
            )
            with Progress(*columns, transient=True) as progress:
                task = progress.add_task(
                    f"Tokenizing the {split} split", total=self._text_bytes(split, rows)
                )
                write_token_store(
                    folder,
                    rows,
                    cleaner=self.cleaner,
                    tokenizer=tokenizer,
                    unit="article" if self.blocks == "pack" else "row",
                    shaped_by=shaped_by,
                    advance=lambda count: progress.advance(task, count),
                )
        store = self._open_store(split, name)
        if self.remote and folder.is_dir():
            self.remote.publish(name, store)
        manifest = store.manifest
        if manifest.units == 0:
            if manifest.rows == 0:
                raise UsageError(
                    f"--data.source {self.source}: "
                    + (
                        f"the text is too short to hold out a {split} split. Give more text, or "
                        "a source with such a split."
                        if split in self.held_out_from_train
                        else f"its {split} split is empty."
                    )
                )
            raise UsageError(
                f"--data.source {self.source}: nothing is left of the {split} split "
                f"({manifest.rows} rows) after --data.cleaning {self.cleaner.name}. "
                "Try --data.cleaning none, or check the source."
            )
        return name

    def _open_store(self, split: SplitName, name: str) -> TokenStore:
        """Open a store of this machine, else the remote one: the training split in shards."""
        folder = self.cache_dir / "tokens" / name
        if self.remote is None or folder.is_dir():
            return TokenStore.open(folder)
        return self.remote.open(name) if split == "train" else self.remote.fetch(name, folder)

    # --- in every process ---------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Load the tokenizer and memory-map the token stores; all ranks map the same files."""
        prepared = self._prepared
        if self.trainer is not None:
            prepared = self.trainer.strategy.broadcast(prepared)
        if isinstance(prepared, UsageError):
            raise prepared
        assert prepared is not None, "prepare_data() has not been called"
        tokenizer_name, names = prepared
        revision = self.tokenizer_revision
        self._tokenizer = load_tokenizer(tokenizer_name, revision, self.add_tokens)
        self.stores = {split: self._open_store(split, name) for split, name in names.items()}

    def split_blocks(self, split: SplitName) -> Blocks:
        """Return a split's blocks."""
        store = self.stores[split]
        if self.blocks == "pack":
            end = int(self.tokenizer.eos_token_id)
            return PackedBlocks(store, self.block_size, end, self.attend)
        return PaddedBlocks(store, self.block_size, int(self.tokenizer.pad_token_id))

    def train_dataloader(self) -> TrainBatches:
        """Return the training micro-batches of this rank."""
        trainer = self.trainer
        return TrainBatches(
            self.split_blocks("train"),
            batch_size=self.batch_size,
            seed=self.seed,
            accumulate=trainer.accumulate_grad_batches if trainer else 1,
            limit=trainer.limit_train_batches if trainer else 1.0,
            shift=self.shift_blocks,
            repeat=trainer is not None and cast(Any, trainer).overfit_batches > 0,
            **self._ranks(),
        )

    def val_dataloader(self) -> EvalBatches:
        """Return the validation batches of this rank."""
        return self._eval_batches("validation")

    def test_dataloader(self) -> EvalBatches:
        """Return the test batches of this rank."""
        return self._eval_batches("test")

    def _eval_batches(self, split: SplitName) -> EvalBatches:
        return EvalBatches(self.split_blocks(split), batch_size=self.batch_size, **self._ranks())

    def predict_dataloader(self) -> PromptBatches:
        """Return the prompts of this rank."""
        if self.prompts is None:
            raise UsageError("--data.prompts: predict needs a file of prompts, one a line.")
        return PromptBatches(
            read_prompts(self.prompts),
            self.tokenizer,
            batch_size=self.batch_size,
            **self._ranks(),
        )

    def _ranks(self) -> dict[str, int]:
        if self.trainer is None:
            return {}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def original_bytes(self, split: SplitName) -> tuple[int | None, str]:
        """Return the bytes of a split's original text, if its every byte is predicted.

        Returns:
            The number of UTF-8 bytes and an empty string; or None and the reason why bits per
            byte are not defined.
        """
        if self.blocks == "pad":
            return None, "--data.blocks pad cuts off what is longer than a block"
        if not self.cleaner.lossless:
            return None, f"--data.cleaning {self.cleaner.name} loses text"
        if self.cleaner.name == "detokenize" and not self.stores[split].manifest.marks:
            return None, "--data.cleaning detokenize loses nothing of WikiText, which this is not"
        if lost := lost_by_tokens(self.stores[split].manifest.lost, self.tokenizer):
            return None, f"the tokenizer loses text ({lost})"
        return self.stores[split].manifest.bytes, ""

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Move a batch; to a GPU by way of pinned memory, so that the host goes on meanwhile."""
        if device.type == "cuda":
            pinned = {name: it.pin_memory() for name, it in batch.items() if torch.is_tensor(it)}
            batch = batch | pinned  # Lightning copies tensors without blocking
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    # --- in the checkpoint --------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Put the tokenizer's files into the checkpoint, so that it needs no folder beside it."""
        return {"tokenizer_files": tokenizer_files(self.tokenizer)}
