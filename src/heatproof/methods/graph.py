"""The operations of a backward pass, read from autograd's graph.

A mode that replaces rules (see `rules`) sees the functions that a network calls in Python. It does not see inside a scripted or
traced module, a compiled one, or a `torch.autograd.Function`. Autograd's graph holds every operation, however it is spelt and
whoever ran it. So a method with rules of its own checks the graph after the forward pass: each operation between the logits
and the image must be one that the method replaced, or one whose ordinary gradient is right for it.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

# Names as autograd has them, without "Backward0".
REARRANGEMENTS = (
    frozenset({"View", "UnsafeView", "ReshapeAlias", "AsStrided", "Alias", "Permute", "Transpose", "T", "Squeeze", "Unsqueeze"})
    | {"Expand", "Clone", "ToCopy", "Slice", "Select", "Index", "IndexSelect", "Gather", "Cat", "Stack", "Unbind", "Split"}
    | {"SplitWithSizes", "ConstantPadNd", "ReflectionPad2D", "ReplicationPad2D", "Roll", "Flip", "Repeat", "ChannelShuffle"}
    | {"PixelShuffle", "PixelUnshuffle", "Unfold", "Diagonal", "Narrow", "Copys", "Movedim"}
)  # fmt: skip
"""Each output is one input: where relevance and gradients go is clear."""

SELECTIONS = frozenset({"MaxPool2DWithIndices", "AdaptiveMaxPool2D", "Amax", "Max", "MaxPool3DWithIndices"})
"""Each output is one input, which one depends on their values."""

LINEAR = (
    REARRANGEMENTS
    | {"Add", "Sub", "Rsub", "Neg", "Sum", "Mean", "AvgPool2D", "AdaptiveAvgPool2D", "Cumsum", "Im2Col", "Col2Im"}
    | {"UpsampleBilinear2D", "UpsampleNearest2D", "UpsampleBicubic2D", "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"}
    | {"BatchNormWithUpdate"}
)  # fmt: skip
"""The gradient is the whole truth (of batch norms: in evaluation mode)."""

PRODUCTS: Mapping[str, tuple[int, ...]] = {
    "Mul": (0, 1), "Div": (0, 1), "Mm": (0, 1), "Bmm": (0, 1), "Mv": (0, 1), "Dot": (0, 1), "Addmm": (1, 2),
    "Addmv": (1, 2), "Baddbmm": (1, 2), "Addbmm": (1, 2), "Convolution": (0, 1), "Linear": (0, 1), "Addcmul": (1, 2),
}  # fmt: skip
"""Linear in each of these arguments as long as the others are constants."""

STEPS = frozenset({"Round", "Floor", "Ceil", "Trunc", "Sign", "Sgn", "FloorDivide"})
"""Constant between jumps: autograd hands back zeros."""

_RELUS: Mapping[str, str | None] = {
    "Relu": None, "Hardtanh": "_saved_min_val", "Threshold": "_saved_threshold", "Clamp": "_saved_min",
    "ClampMin": "_saved_min", "Maximum": None, "Fmax": None, "Where": None, "MaskedFill": None, "IndexPut": None,
    "Abs": None, "CopySlices": None,
}  # fmt: skip
"""Of what a ReLU can be made, and which attribute of the node has the bound that is 0 then."""


class Operation(NamedTuple):
    """A step of the backward pass.

    Args:
        name: autograd's, such as "Relu" or "Convolution"; of a Python function, the name of its class.
        kind: the class of a `torch.autograd.Function`; None for torch's own operations.
        attached: positions of the arguments that lead to the image.
        batch_statistics: whether it is a batch norm that looks at the batch itself.
        may_be_relu: whether a ReLU can be made of it.
    """

    name: str
    kind: type | None
    attached: tuple[int, ...]
    batch_statistics: bool
    may_be_relu: bool

    @property
    def described(self) -> str:
        """How a message names it."""
        if self.kind is not None:
            return f"the autograd function {self.name!r}"
        return "a batch norm without running statistics" if self.batch_statistics else repr(self.name)

    @property
    def is_linear(self) -> bool:
        """Whether its gradient does not depend on the image, as far as the graph shows it."""
        if self.kind is not None or self.batch_statistics:
            return False
        if self.name in PRODUCTS:
            factors = [position for position in self.attached if position in PRODUCTS[self.name]]
            return len(factors) <= 1 and not (self.name == "Div" and 1 in factors)
        return self.name in LINEAR


def operations(outputs: Tensor, inputs: Tensor) -> Iterator[Operation]:
    """The operations between `inputs` and `outputs`, from the last to the first; none where no gradient flows."""
    nodes = _nodes(outputs)
    leading = _leading(nodes, inputs)
    for node in nodes:
        if node in leading and not hasattr(node, "variable"):
            yield _read(node, leading)


def is_reached(outputs: Tensor, inputs: Tensor) -> bool:
    """Whether a gradient of `outputs` comes to `inputs` on any way without steps, whose gradient is 0."""
    nodes = _nodes(outputs)
    return bool(nodes) and nodes[0] in _leading(nodes, inputs, around=STEPS)


def _leading(nodes: list[Any], inputs: Tensor, around: Collection[str] = ()) -> set[Any]:
    """Those of the nodes that lead to the inputs."""
    leading: set[Any] = set()
    for node in reversed(nodes):  # what a node leads to stands behind it
        if _is_of(node, inputs) or (
            any(child in leading for child, _ in node.next_functions) and _name(node) not in around
        ):
            leading.add(node)
    return leading


def _is_of(node: Any, tensor: Tensor) -> bool:
    """Whether a gradient that comes to the node is that of the tensor."""
    return node is tensor.grad_fn if tensor.grad_fn is not None else getattr(node, "variable", None) is tensor


def _nodes(outputs: Tensor) -> list[Any]:
    """All nodes of the graph, each before those that it leads to."""
    order: list[Any] = []
    seen, stack = set(), [(outputs.grad_fn, False)]
    while stack:  # a network may be deeper than Python's recursion
        node, is_done = stack.pop()
        if is_done:
            order.append(node)
        elif node is not None and node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child, _ in node.next_functions)
    return order[::-1]


def _read(node: Any, leading: Collection[Any]) -> Operation:
    attached = tuple(i for i, (child, _) in enumerate(node.next_functions) if child in leading)
    kind = getattr(type(node), "_forward_cls", None)
    name = _name(node)
    batch_norm = name.endswith("BatchNorm") or name == "BatchNormWithUpdate"
    statistics = batch_norm and bool(getattr(node, "_saved_training", False))
    return Operation(name, kind, attached, statistics, name in _RELUS and _is_cut_at_zero(node, _RELUS[name]))


def _name(node: Any) -> str:
    name: str = node.name().rpartition("::")[2]
    return re.sub(r"Backward\d*$", "", name)


def _is_cut_at_zero(node: Any, attribute: str | None) -> bool:
    bound = 0 if attribute is None else getattr(node, attribute, None)
    return isinstance(bound, Tensor) or bound == 0
