"""``report``: a page about a run, or about several side by side."""

from pathlib import Path
from typing import TYPE_CHECKING

from gpt2_lightning.errors import UsageError
from gpt2_lightning.parser import Parser, with_underscores
from gpt2_lightning.storage import check_replaceable

if TYPE_CHECKING:
    from gpt2_lightning.run_folder import Run


def report(runs: list[str], output: str | None = None) -> None:
    """Write a page about a run, or about several side by side.

    Args:
        runs: Run folders such as lightning_logs/version_0.
        output: The page; report.html in the run's folder unless said, of several runs beside the
            first one's.
    """
    from gpt2_lightning.report.page import write_page

    opened = [open_run(name) for name in runs]
    target = Path(output).expanduser() if output else _place(opened)
    if target.is_dir():
        raise UsageError(
            f"--output {target}: it is a folder. --output {target / 'report.html'} would work."
        )
    if not target.parent.is_dir():
        raise UsageError(
            f"--output {target}: there is no folder {target.parent}. Make it, or choose another."
        )
    if output:
        check_replaceable(target, "--output", lambda text: text.startswith("<!DOCTYPE html>"))
    try:
        write_page(opened, target)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UsageError | UnicodeError):
            raise
        # what these files hold is read where the page shows it
        raise UsageError(
            f"report {' '.join(runs)}: facts.json, samples.jsonl, surprisal.jsonl or config.yaml "
            f"of the run holds what no run writes ({type(error).__name__}: {error}). Without the "
            "damaged file the report can be made."
        ) from error
    print(f"Report: {target}")


def open_run(name: str) -> "Run":
    """Return a run folder that was named for a report.

    Raises:
        UsageError: If it is none.
    """
    from gpt2_lightning.run_folder import EVENTS, Run

    run = Run(Path(name).expanduser())
    folder = run.folder
    if not folder.is_dir():
        what = "it is a file" if folder.exists() else "there is no such folder"
        raise UsageError(f"report {name}: {what}. Give a run folder such as {_meant(folder)}.")
    signs = (*folder.glob(EVENTS), run.metrics, run.config, run.facts_file)
    if not any(sign.exists() for sign in signs):
        found = ", ".join(sorted(file.name for file in folder.iterdir())[:6]) or "nothing"
        raise UsageError(
            f"report {name}: no run folder: it holds {found}, but neither events nor config.yaml. "
            f"Give a run folder such as {_meant(folder)}."
        )
    return run


def _meant(folder: Path) -> str:
    """Name a run that was perhaps meant: around a file, or the newest below a folder."""
    from gpt2_lightning.run_folder import Run

    around = [parent for parent in folder.parents[:2] if Run(parent).config.is_file()]
    below = sorted(folder.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
    if around or below:
        return str(around[0] if around else below[-1].parent)
    return "lightning_logs/version_0"


def _place(runs: "list[Run]") -> Path:
    first = runs[0].report
    return first if len(runs) == 1 else first.parent.resolve().parent / first.name


def _as_positions(words: list[str]) -> list[str]:
    """Turn ``--run RUN`` into RUN, so that runs stand on the page in the order they were typed."""
    if words and words[-1] == "--run":
        raise UsageError("--run: it needs a value.")
    return [word.removeprefix("--run=") for word in words if word != "--run"]


def main(words: list[str]) -> None:
    """Parse the words and run the verb."""
    parser = Parser(
        prog="gpt2_lightning report",
        usage="gpt2_lightning report RUN [RUN ...] [--output FILE]",
        description="Write a page about a run, or about several side by side.",
    )
    parser.add_argument(
        "runs",
        nargs="*",
        type=str,
        metavar="RUN",
        help="Run folder such as lightning_logs/version_0.",
    )
    # turned into positions below; here for --help
    parser.add_argument("--run", type=str, metavar="RUN", help="The same as a flag.")
    parser.add_argument(
        "--output",
        type=str,
        help="The page; report.html in the run's folder unless said, of several runs beside the "
        "first one's.",
    )
    options = parser.parse_args(_as_positions(with_underscores(words)))
    runs = list(dict.fromkeys(options.runs))
    if not runs:
        raise UsageError(
            "report: of which run? Write: python -m gpt2_lightning report lightning_logs/version_0."
        )
    report(runs, options.output)
