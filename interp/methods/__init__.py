"""Floor 3: one family of published methods a folder, one method a file, one line here."""

from interp.methods.patching.activation_patching import ActivationPatching
from interp.terms import Method

METHODS: dict[str, type[Method]] = {
    "activation_patching": ActivationPatching,
}
"""Every method by its key (snake_case of the class's name)."""

__all__ = ["METHODS", "ActivationPatching"]
