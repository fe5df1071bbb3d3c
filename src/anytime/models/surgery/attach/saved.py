"""What a backbone from a file is checked for before exits are placed: its weights fit it, and an image costs what it may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from anytime.models.surgery.attach.conditions import preserved
from anytime.models.surgery.attach.cut_points import example_images
from anytime.models.surgery.backbones import find_classifiers
from anytime.support.flops import extra_formulas
from anytime.support.limits import MOST_MACS, UNFIT, BeyondLimit
from anytime.support.trust import is_untrusted, saved_shapes

MOST_ELEMENTS = 2**31  # of one tensor; VGG-19 has 1.3e8 at 1024 x 2048


def check_saved(backbone: nn.Module, input_size: Sequence[int], classifier: str | None) -> None:
    """Raises ValueError if the weights that are being loaded are not the backbone's, or one of its images costs too much.

    The cost is limited only for a file that nobody trusts.

    Args:
        backbone: The network that a file names.
        input_size: (channels, height, width) that it names.
        classifier: Name of the layer that makes the logits, which may be replaced later; None: it is found.
    """
    shapes, replaced = saved_shapes(), list[str]()
    if shapes is not None:
        with suppress(ValueError):  # if none is found, none can be replaced
            replaced = find_classifiers(backbone, classifier)
        _check_shapes(backbone, shapes, replaced)
    if is_untrusted():
        check_work(backbone, input_size)


def _check_shapes(backbone: nn.Module, shapes: Mapping[str, Sequence[int]], replaced: Sequence[str]) -> None:
    """Names are compared from their ends, because a network inside another one has longer names in the file."""
    ends: dict[str, set[tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        parts = name.split(".")
        for i in range(len(parts)):
            ends.setdefault(".".join(parts[i:]), set()).add(tuple(shape))
    for name, tensor in backbone.state_dict().items():
        known = sorted(ends.get(name, ()))
        if name.rpartition(".")[0] not in replaced and tuple(tensor.shape) not in known:
            found = " or ".join(str([*shape]) for shape in known[:3]) if known else "none of this name"
            raise ValueError(f"its backbone has {name} of shape {[*tensor.shape]}, but the weights have {found}")


def check_work(network: nn.Module, input_size: Sequence[int]) -> None:
    """Raises BeyondLimit if an image costs more than `MOST_MACS`, or needs a tensor of more than `MOST_ELEMENTS`.

    The network runs on one image, up to the operation that would exceed a limit.
    """
    with preserved(network), _WorkLimit():
        try:
            network(example_images(network, input_size, 1))
        except BeyondLimit as error:
            size = "x".join(map(str, input_size))
            raise BeyondLimit(f"one image of {size} costs {type(network).__name__} {error.what}", error.most) from None
        except (AssertionError, *UNFIT):  # it comes up again, and is explained, where the exits are placed
            return


class _WorkLimit(TorchDispatchMode):
    """Raises BeyondLimit before an operation that exceeds a limit; its shape is asked on the meta device first."""

    def __init__(self) -> None:
        super().__init__()
        from torch.utils.flop_counter import FlopCounterMode  # imports Triton, which the run-time does not need

        self._formulas = FlopCounterMode(display=False, custom_mapping=extra_formulas()).flop_registry
        self._macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, elements = kwargs or {}, 0
        with suppress(*UNFIT):  # an operation that needs values, or that is wrong and fails again
            macs, elements = self._ask(func, args, kwargs)
            self._macs += macs
        if self._macs > MOST_MACS:
            raise BeyondLimit(f"{self._macs:.1e} multiply-adds", MOST_MACS)
        if elements > MOST_ELEMENTS:
            raise BeyondLimit(f"a tensor of {elements:,} values", MOST_ELEMENTS)
        return func(*args, **kwargs)

    def _ask(self, func: Any, args: Any, kwargs: Any) -> tuple[int, int]:
        """Multiply-adds of an operation, and the most elements of a tensor that it gives."""
        args, kwargs = pytree.tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        result = func(*args, **kwargs)
        elements = max((leaf.numel() for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)), default=0)
        formula = self._formulas.get(func._overloadpacket)
        return formula(*args, **kwargs, out_val=result) // 2 if formula else 0, elements
