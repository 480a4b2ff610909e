"""``report``: a page about a run, or about several side by side."""

from pathlib import Path

from gpt2_lightning.arguments import Parser, gather, with_underscores
from gpt2_lightning.errors import UsageError


def report(runs: list[str], output: str | None = None) -> None:
    """Write a page about a run, or about several side by side.

    Args:
        runs: Run folders such as lightning_logs/version_0.
        output: The page; report.html in the run's folder unless said, of several runs beside the
            first one's.
    """
    from gpt2_lightning.report.page import write_page
    from gpt2_lightning.report.run import read_run

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
    write_page(read, target)
    print(f"Report: {target}")


def _place(folders: list[Path]) -> Path:
    return (folders[0] if len(folders) == 1 else folders[0].resolve().parent) / "report.html"


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
    # taken out below, since it may be repeated; here for --help
    parser.add_argument("--run", type=str, metavar="RUN", help="The same as a flag.")
    parser.add_argument(
        "--output",
        type=str,
        help="The page; report.html in the run's folder unless said, of several runs beside the "
        "first one's.",
    )
    rest, named = gather(with_underscores(words), "--run")
    options = parser.parse_args(rest)
    runs = list(dict.fromkeys([*named, *options.runs]))
    if not runs:
        raise UsageError(
            "report: of which run? Write: python -m gpt2_lightning report lightning_logs/version_0."
        )
    report(runs, options.output)
