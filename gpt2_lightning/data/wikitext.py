"""WikiText-2 as it was published: the rows of its splits, and the hashes of its raw text.

Merity et al., "Pointer Sentinel Mixture Models", https://arxiv.org/abs/1609.07843.
"""

from gpt2_lightning.data.rows import SplitName

ROWS: dict[SplitName, int] = {"train": 36718, "validation": 3760, "test": 4358}
# Of wiki.{train,valid,test}.raw; a row of the Hub's copy is a line there, its blank ones " \n".
RAW_SHA256: dict[SplitName, str] = {
    "train": "6707892fa3788b5ab9ed78ab5ff37d9fe825f6011a2ad4fcd6a6d467f0e7da57",
    "validation": "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7",
    "test": "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
}
