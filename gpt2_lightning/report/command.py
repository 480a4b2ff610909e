"""``report``: a page about a run, or about several side by side."""

from pathlib import Path

from gpt2_lightning.errors import UsageError
from gpt2_lightning.parser import Parser, with_underscores


def report(runs: list[str], output: str | None = None) -> None:
    """Write a page about a run, or about several side by side.

    Args:
        runs: Run folders such as lightning_logs/version_0.
        output: The page; report.html in the run's folder unless said, of several runs beside the
            first one's.
    """
    from gpt2_lightning.report.page import write_page
    from gpt2_lightning.run_folder import read_run

    read = [read_run(name) for name in runs]
    target = Path(output).expanduser() if output else _place([run.folder for run in read])
    if target.is_dir():
        raise UsageError(
            f"--output {target}: it is a folder. --output {target / 'report.html'} would work."
        )
    if not target.parent.is_dir():
        raise UsageError(
            f"--output {target}: there is no folder {target.parent}. Make it, or choose another."
        )
    try:
        write_page(read, target)
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


def _place(folders: list[Path]) -> Path:
    return (folders[0] if len(folders) == 1 else folders[0].resolve().parent) / "report.html"


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
