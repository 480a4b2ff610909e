"""Fine-tune GPT-2 on your own text, know exactly how good it got, and use it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2_lightning.generate.text_model import load as load

    __version__: str | None  # None where the package is run from its folder, not installed
else:

    def __getattr__(name: str) -> object:
        """Bring a name when it is asked for: importing the package stays light."""
        if name == "__version__":
            from importlib.metadata import PackageNotFoundError, version

            try:
                return version("gpt2-lightning")
            except PackageNotFoundError:
                return None
        if name != "load":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from gpt2_lightning.generate.text_model import load

        return load
