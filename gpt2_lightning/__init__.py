"""Fine-tune GPT-2 on your own text, know exactly how good it got, and use it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2_lightning.generate.text_model import load as load
else:

    def __getattr__(name: str) -> object:
        """Bring `load` when it is asked for: importing the package stays light."""
        if name != "load":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from gpt2_lightning.generate.text_model import load

        return load
