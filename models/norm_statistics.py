"""Estimates the statistics of batch-norm layers again from scans without labels, and checks such statistics.

Layer by layer in the order of the forward pass: each layer's input is computed with the layers before it already
adapted, as in the forward pass of the adapted network. The scans' order and batch size make no difference.

One scan can move a statistic only a little, whatever it shows: its own mean counts at most REACH standard deviations of
the release away, its own variance at most REACH**2 times that of the release. So among n scans, one scan moves a mean
by at most 2 * REACH / (SOURCE_SCANS + n) standard deviations.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.adaptation import SOURCE_SCANS, Adaptation, are_judged_again, derive
from models.compute import PROCESSOR, Compute
from models.network import SeverityNetwork
from models.reasons import ADAPT_NETWORK, DERIVED_ALTERED
from models.refusal import Refusal
from models.release import Release

REACH = 3.0  # standard deviations of the release's own statistics
_ROUNDING = 1e-4  # relative, of float32 buffers
STATISTICS = ("running_mean", "running_var")

Scans = Callable[[], Iterator[Tensor]]  # each scan (2, slices, rows, columns), float32


class _Reached(Exception):
    """The forward pass has reached the layer in question; the rest is not needed."""


def norm_layers(network: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch-norm layers with statistics, by name. Raises Refusal E_ADAPT_NETWORK if there is none."""
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, _BatchNorm)}
    if not layers or any(layer.running_mean is None for layer in layers.values()):
        raise Refusal(ADAPT_NETWORK)
    return layers


@torch.inference_mode()
def adapt_statistics(
    network: SeverityNetwork,
    scans: Scans,
    *,
    compute: Compute = PROCESSOR,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Replace the statistics of all batch-norm layers by the mix with those of `scans`. In float32.

    `progress`: called with the number of layers done and their number. Raises Refusal E_ADAPT_NETWORK, and those of
    `Compute.use`.
    """
    compute = compute.exact()
    network.eval()
    norm_layers(network)
    with compute.use(network):
        layers = _in_order(network, compute.move(next(scans())[None]))
        for done, layer in enumerate(layers):
            progress(done, len(layers))
            moments = [_moments(network, layer, compute.move(scan[None])) for scan in scans()]
            _mix(layer, *(torch.stack(each) for each in zip(*moments, strict=True)))
        progress(len(layers), len(layers))


def _in_order(network: SeverityNetwork, scan: Tensor) -> list[_BatchNorm]:
    """Return the layers in the order of the forward pass. Raises Refusal E_ADAPT_NETWORK unless each runs just once."""
    layers, order = list(norm_layers(network).values()), []
    hooks = [layer.register_forward_pre_hook(lambda layer, _: order.append(layer)) for layer in layers]
    try:
        network.of_scans(scan)
    finally:
        for hook in hooks:
            hook.remove()
    if len(order) != len(layers) or set(map(id, order)) != set(map(id, layers)):
        raise Refusal(ADAPT_NETWORK)
    return order


def _moments(network: SeverityNetwork, layer: _BatchNorm, scan: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of one scan in each channel of the layer's input, float64, shape (channels,)."""
    found: list[tuple[Tensor, Tensor]] = []

    def look(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        axes = [axis for axis in range(given[0].ndim) if axis != 1]
        variance, mean = torch.var_mean(given[0], axes, correction=0)
        found.append((mean.double().cpu(), variance.double().cpu()))
        raise _Reached

    hook = layer.register_forward_pre_hook(look)
    try:
        network.of_scans(scan)
    except _Reached:
        pass
    finally:
        hook.remove()
    return found[0]


def _mix(layer: _BatchNorm, means: Tensor, variances: Tensor) -> None:
    """Mix the layer's statistics with those of the scans, shape (scans, channels), each within REACH."""
    assert layer.running_mean is not None and layer.running_var is not None
    source_mean, source_variance = layer.running_mean.double().cpu(), layer.running_var.double().cpu()
    reach = REACH * source_variance.sqrt()
    means = means.clamp(source_mean - reach, source_mean + reach)
    variances = torch.minimum(variances, REACH**2 * source_variance)
    variance = variances.mean(dim=0) + means.var(dim=0, correction=0)  # of all voxels of all scans
    variance = variance.clamp(source_variance / REACH**2, source_variance * REACH**2)
    weight = len(means) / (SOURCE_SCANS + len(means))
    layer.running_mean.copy_((1 - weight) * source_mean + weight * means.mean(dim=0))
    layer.running_var.copy_((1 - weight) * source_variance + weight * variance)


def require_derived(derived: Release, parent: Release) -> None:
    """Require that a derived release is its parent with other batch-norm statistics, within the bounds of the mix.

    Raises Refusal E_DERIVED_ALTERED.
    """
    adaptation, points = derived.description.adaptation, derived.description.operating_points
    if adaptation is None or adaptation.parent != parent.sha256 or parent.description.provenance is None:
        raise Refusal(DERIVED_ALTERED, private="another parent")
    expected = derive(parent.description, adaptation, points)
    own = {"weights_sha256": derived.description.weights_sha256}
    if expected.model_copy(update=own) != derived.description or not are_judged_again(points, parent.description):
        raise Refusal(DERIVED_ALTERED, private="another description")
    _require_statistics(derived.network, parent.network, adaptation)


def _require_statistics(derived: SeverityNetwork, parent: SeverityNetwork, adaptation: Adaptation) -> None:
    before, after = parent.state_dict(), derived.state_dict()
    adapted = {f"{name}.{statistic}" for name in norm_layers(parent) for statistic in STATISTICS}
    for name in before.keys() - adapted:
        if not torch.equal(before[name], after[name]):
            raise Refusal(DERIVED_ALTERED, private=f"other weights: {name}")
    for name in norm_layers(parent):
        mean, variance = (before[f"{name}.{statistic}"].double() for statistic in STATISTICS)
        new_mean, new_variance = (after[f"{name}.{statistic}"].double() for statistic in STATISTICS)
        weight, slack = adaptation.weight, 1 + _ROUNDING
        reach = weight * REACH * variance.sqrt()
        least, most = (1 - weight + weight / REACH**2) * variance, (1 - weight + weight * REACH**2) * variance
        is_near = ((new_mean - mean).abs() <= reach * slack + _ROUNDING * mean.abs() + 1e-12).all()
        is_wide = ((new_variance >= least / slack - 1e-12) & (new_variance <= most * slack + 1e-12)).all()
        if not (is_near and is_wide):  # NaN fails both
            raise Refusal(DERIVED_ALTERED, private=f"statistics beyond the mix: {name}")
