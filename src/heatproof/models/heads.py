"""Another head for a classifier, so that pretrained weights can be trained on further classes."""

from torch import nn

from heatproof.errors import ModelError


def new_head(model: nn.Module, num_classes: int) -> nn.Module:
    """The classifier with its last linear layer drawn anew for `num_classes`; in place, everything else stays.

    Named as `transformer` in a configuration, with `pretrained_weights: DEFAULT` beside it. A head that has as many classes
    already is replaced as well: its classes are others.

    Args:
        model: the head is the last `torch.nn.Linear` of its modules, as in torchvision, timm and Hugging Face's models.
        num_classes: outputs of the new head.

    Raises:
        ModelError: the classifier has no linear layer.

    >>> new_head(nn.Sequential(nn.Flatten(), nn.Linear(12, 1000)), 4)[1]
    Linear(in_features=12, out_features=4, bias=True)
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ModelError("heatproof.models.heads.new_head: the classifier has no linear layer that could be replaced")
    parent, _, name = linear[-1].rpartition(".")
    old = model.get_submodule(linear[-1])
    assert isinstance(old, nn.Linear)
    head = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    setattr(model.get_submodule(parent), name, head.to(old.weight))
    return model
