"""Swapping a module's class, so that it runs otherwise and is the same object.

Parameters, names, hooks, and whoever holds the module stay. Copies and pickles keep the class.
"""

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.fx import Proxy


class SwappedClass(nn.Module):
    """Base of what a module's class is swapped for: comes before the module's own class.

    ``super().forward`` is the module's own.
    """

    EXTRAS: tuple[str, ...] = ()  # attributes and submodules that the module has meanwhile

    if TYPE_CHECKING:  # attributes are the module's own

        def __getattr__(self, name: str) -> Any: ...

    def __prepare_scriptable__(self) -> None:
        """Called by ``torch.jit.script``, whose language our code is not written in."""
        raise ValueError(
            "torch.jit.script cannot compile blocks that merge tokens: use torch.jit.trace, "
            "torch.compile or ltm_mm.export, or call ltm_mm.remove(model) first"
        )

    def __reduce_ex__(self, protocol: object) -> tuple:
        """A class made while running has no name to be found by: name what it is made of."""
        mixin, original = type(self).__bases__
        state = getattr(self, "__getstate__", lambda: self.__dict__)()  # Python < 3.11 has none
        return _blank, (mixin, original), state


_made: dict[tuple[type, type], type] = {}


def _swapped_class(mixin: type, original: type) -> type:
    """The class that comes of both; one object, as a class has to be."""
    if (mixin, original) not in _made:
        names = dict(
            __module__=original.__module__,
            __qualname__=original.__qualname__,
            __doc__=original.__doc__,
        )
        _made[mixin, original] = type(original.__name__, (mixin, original), names)
    return _made[mixin, original]


def _blank(mixin: type[SwappedClass], original: type[nn.Module]) -> nn.Module:
    made: Any = _swapped_class(mixin, original)
    return made.__new__(made)


def refuse_tracing(x: object) -> None:
    """Raise a ValueError under ``torch.fx.symbolic_trace``, which gives no shapes to work with."""
    if isinstance(x, Proxy):
        raise ValueError(
            "torch.fx cannot trace inside blocks that merge tokens: keep them whole with "
            "create_feature_extractor(..., tracer_kwargs=dict(leaf_modules=["
            "ltm_mm.merging.MergeScope])), read maps with forward hooks or timm's "
            "forward_intermediates, or use torch.export"
        )


def swap_class(module: nn.Module, mixin: type[SwappedClass], **extras: Any) -> None:
    """Swap a module's class for one that ``mixin`` comes first in.

    Args:
        module: any; nothing in it is replaced.
        mixin: brings the ``forward``.
        **extras: attributes and submodules to set, of those that the mixin names.
    """
    module.__class__ = _swapped_class(mixin, type(module))
    for name, value in extras.items():
        setattr(module, name, value)


def restore_class(module: nn.Module) -> None:
    """Give a module back the class that it had; any other module stays as it is.

    Raises:
        ValueError: if somebody else has swapped its class since.
    """
    if not isinstance(module, SwappedClass):
        return
    if type(module) not in _made.values():
        raise ValueError(
            f"{type(module).__name__} has got another class since merging was put on (sharding, "
            "as FSDP does it?): remove merging before that"
        )
    _, original = type(module).__bases__
    for name in module.EXTRAS:
        if hasattr(module, name):
            delattr(module, name)
    module.__class__ = original
