"""From a map with channels to one value per pixel. Methods leave this to the caller, since it changes the method."""

from torch import Tensor

from heatproof.errors import InputError, nearest

RESULTS_VERSION = 1

CHANNEL_REDUCTIONS = ("signed_max", "abs_max", "sum", "abs_sum", "l2", "mean")


def reduce_channels(maps: Tensor, how: str) -> Tensor:
    """One value per pixel from one per pixel and channel.

    - `signed_max`: the largest value, with its sign (ROAR: strong negative evidence ranks last);
    - `abs_max`: the largest absolute value (TorchRay's gradient and guided backprop);
    - `sum`, `mean`: signed; `abs_sum`: sum of absolute values; `l2`: root of the sum of squares.

    Args:
        maps: (N, C, H, W), or (N, H, W), which is returned as it is.
        how: one of the names above.

    Returns:
        (N, H, W), same dtype and device.

    Raises:
        InputError: where the name is unknown or the maps have another number of axes.

    >>> import torch
    >>> maps = torch.tensor([1.0, -3.0]).reshape(1, 2, 1, 1)
    >>> {how: reduce_channels(maps, how).item() for how in ("signed_max", "abs_max", "sum", "abs_sum", "mean")}
    {'signed_max': 1.0, 'abs_max': 3.0, 'sum': -2.0, 'abs_sum': 4.0, 'mean': -1.0}
    """
    if how not in CHANNEL_REDUCTIONS:
        raise InputError(f"channel_reduction {how!r} is unknown{nearest(how, CHANNEL_REDUCTIONS)}")
    if maps.ndim == 3:
        return maps
    if maps.ndim != 4:
        raise InputError(f"maps: shape {tuple(maps.shape)}; expected (N, C, H, W) or (N, H, W)")
    match how:
        case "signed_max":
            return maps.amax(dim=1)
        case "abs_max":
            return maps.abs().amax(dim=1)
        case "sum":
            return maps.sum(dim=1)
        case "abs_sum":
            return maps.abs().sum(dim=1)
        case "l2":
            return maps.square().sum(dim=1).sqrt()
    return maps.mean(dim=1)
