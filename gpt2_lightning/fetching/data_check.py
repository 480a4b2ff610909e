"""Whether a folder holds whole data, and whether it is WikiText-2 as it was published."""

from pathlib import Path

from gpt2_lightning.data.files import open_path
from gpt2_lightning.data.readers import is_data
from gpt2_lightning.data.rows import SplitName
from gpt2_lightning.errors import UsageError
from gpt2_lightning.fetching.official import judge, read_split
from gpt2_lightning.fetching.whole_files import check_content, visible_files

ORDER: tuple[SplitName, ...] = ("train", "validation", "test")
SAVED = ("dataset_dict.json", "state.json")  # of a folder that save_to_disk wrote


def looks_like_data(folder: Path) -> bool:
    """Tell whether a folder holds files of data, not counting those in folders of its own."""
    return any((folder / name).is_file() for name in SAVED) or any(
        is_data(path.name) and not path.name.startswith(".")
        for path in folder.iterdir()
        if path.is_file() or path.is_symlink()
    )


def check_data(folder: Path, root: Path) -> tuple[list[str], list[str]]:
    """See that a folder's data can be read to its end.

    Args:
        folder: The data.
        root: The fetched folder that it is in, or the same.

    Returns:
        What it is, line by line; and what is wrong with it although it can be read.

    Raises:
        UsageError: If something is missing, cut short or damaged.
    """
    inside = [path for path in visible_files(root) if path.is_relative_to(folder)]
    verified = check_content(root, inside)
    try:
        found = open_path(folder, None, "text")
        splits = {name: read_split(found[name]) for name in ORDER if name in found}
    except UsageError as error:
        raise UsageError(f"--check {folder}: {error}") from error
    counts = ", ".join(f"{name} {text.rows:,} rows" for name, text in splits.items())
    verdict, wrong = judge(splits, folder.name)
    lines = [f"  {folder.name}: {counts}"]
    if verdict:
        lines.append(f"    {verdict}")
    if verified and len(verified) == len(inside):
        lines.append("    hashes as when downloaded")
    warnings = [f"{folder.name}: {verdict}."] if verdict and wrong else []
    if "train" not in splits:
        warnings.append(
            f"{folder.name}: there is no train split. It can be evaluated on, not trained on."
        )
    if not any(text.rows for text in splits.values()):
        raise UsageError(f"--check {folder}: its files hold no text. Fetch it again.")
    return lines, warnings
