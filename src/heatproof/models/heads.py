"""Another head for a classifier, so that pretrained weights can be trained on further classes."""

from torch import nn

from heatproof.errors import ModelError


def new_head(model: nn.Module, num_classes: int) -> nn.Module:
    """The classifier with its last linear layer drawn anew for `num_classes`; in place, everything else stays.

    Named as `transformer` in a configuration, with `pretrained_weights: DEFAULT` beside it. A head that has as many classes
    already is replaced as well: its classes are others. Where a classifier has several heads (the distillation token of DeiT
    and LeViT, the auxiliary classifiers of GoogLeNet and Inception), all of them are replaced.

    Args:
        model: timm's models say themselves what their heads are (`reset_classifier`). The heads of others are the last
            `torch.nn.Linear` of their modules and all others of as many outputs, unless a layer takes so many inputs: what
            gives them may then be hidden.
        num_classes: outputs of the new heads.

    Raises:
        ModelError: the classifier has no linear layer.

    >>> new_head(nn.Sequential(nn.Flatten(), nn.Linear(12, 1000)), 4)[1]
    Linear(in_features=12, out_features=4, bias=True)
    """
    reset, heads_of = (getattr(model, name, None) for name in ("reset_classifier", "get_classifier"))
    if callable(reset) and callable(heads_of):
        like = next(model.parameters())
        reset(num_classes)
        heads = heads_of()
        for head in heads if isinstance(heads, tuple | list) else [heads]:
            head.to(like)
        return model
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if not linear:
        raise ModelError("heatproof.models.heads.new_head: the classifier has no linear layer that could be replaced")
    *others, last = linear
    classes = linear[last].out_features
    if any(_inputs(module) == classes for module in model.modules()):
        others = []
    for name in [*(name for name in others if linear[name].out_features == classes), last]:
        old = linear[name]
        head = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, head.to(old.weight))
    return model


def _inputs(module: nn.Module) -> object:
    """How many features a layer takes; None where it takes any number."""
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1]
    names = ("in_features", "in_channels", "num_features", "num_channels", "embed_dim")
    return next((value for name in names if (value := getattr(module, name, None)) is not None), None)
