"""torch in half the time, for a program that only runs a model.

Half of `import torch` is `torch._meta_registrations`: what operators do to shapes, written in Python for
torch.compile, torch.export and models that are built before there are weights. Here an empty module stands in
for it until something of that is wanted.
"""

import importlib
import sys
from types import ModuleType

LEFT_OUT = "torch._meta_registrations"


def import_lean_torch() -> None:
    """Import torch without it. Where torch is imported already, nothing happens."""
    if "torch" not in sys.modules:
        sys.modules[LEFT_OUT] = ModuleType(LEFT_OUT)
        importlib.import_module("torch")


def complete_torch() -> None:
    """Import what was left out, before transformers or torch.export need it."""
    if (module := sys.modules.get(LEFT_OUT)) and module.__spec__ is None:
        del sys.modules[LEFT_OUT]
        importlib.import_module(LEFT_OUT)
