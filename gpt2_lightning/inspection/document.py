"""The figures of a source as plain data, for JSON."""

from dataclasses import asdict
from typing import Any

from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.inspection.advice import advice
from gpt2_lightning.inspection.findings import Findings, SplitFigures


def as_document(findings: Findings, data: WikiTextDataModule) -> dict[str, Any]:
    """Return all figures, counts and shares, under the names that docs/inspecting.md defines."""
    return {
        "source": data.source,
        "subset": data.subset,
        "documents": data.documents,
        "validation_source": data.validation_source,
        "test_source": data.test_source,
        "cleaning": data.cleaner.name,
        "tokenizer": data.tokenizer_name,
        "blocks": data.blocks,
        "block_size": data.block_size,
        "missing": findings.missing,
        "taken": findings.taken,
        "warnings": advice(findings, data),
        "splits": {name: _as_dict(figures) for name, figures in findings.splits.items()},
    }


def _as_dict(figures: SplitFigures) -> dict[str, Any]:
    found = asdict(figures)
    cleaning, fill, overlap = figures.cleaning, figures.fill, figures.overlap
    found["cleaning"] |= {
        "share_of_characters_lost": cleaning.share_of_characters_lost,
        "share_of_punctuation_lost": cleaning.share_of_punctuation_lost,
        "share_of_numbers_lost": cleaning.share_of_numbers_lost,
    }
    found["fill"] |= {
        "share_used": fill.share_used,
        "share_padded": fill.share_padded,
        "share_cut_off": fill.share_cut_off,
        "share_masked": fill.share_masked,
    }
    if overlap is not None:
        found["overlap"]["share"] = overlap.share
    return found
