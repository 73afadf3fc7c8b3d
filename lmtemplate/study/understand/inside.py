"""A net and a batch -> what happens inside: attention, activations, dead units, gradients, updates.

Nothing here knows an architecture. A layer is a child of the net's largest list of modules;
attention and ReLU are seen where the net calls torch's own functions for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

MAP_TOKENS = 32  # tokens of the first sequence whose attention is kept
RELUS = (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)


def layers_of(net: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer, from below: the children of the list with the most parameters; none without.

    A list is an `nn.ModuleList`, or an `nn.Sequential` of one class.
    """
    lists = {
        name: part
        for name, part in net.named_modules()
        if isinstance(part, nn.ModuleList)
        or (isinstance(part, nn.Sequential) and len({type(child) for child in part}) == 1)
    }
    if not lists:
        return {}
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in lists.items()}
    largest = max(sizes, key=lambda name: sizes[name])  # of lists of equal size, the outer one
    return {f"{largest}.{name}": layer for name, layer in lists[largest].named_children()}


def parameters_by_part(net: nn.Module) -> dict[str, list[str]]:
    """Part -> names of its trainable parameters: each layer, and each child of the net beside them."""
    layers, parts = layers_of(net), dict[str, list[str]]()
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            layer = next((of for of in layers if name.startswith(f"{of}.")), name.partition(".")[0])
            parts.setdefault(layer, []).append(name)
    return parts


def attention_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """Arguments of `F.scaled_dot_product_attention` -> scores (-inf where masked) and softmax.

    Queries are (B, H, T, D), keys (B, H or fewer, S, D); both results are (B, H, T, S).
    """
    if key.size(1) != query.size(1):
        key = key.repeat_interleave(query.size(1) // key.size(1), 1)
    scores = query.float() @ key.float().mT * (scale or query.size(-1) ** -0.5)
    if is_causal:
        attn_mask = torch.ones_like(scores[0, 0], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores, scores.softmax(-1).nan_to_num()  # a row may be masked altogether


@dataclass(frozen=True)
class Attended:
    """One attention of H heads."""

    entropy: list[float]  # (H,) nats, mean over tokens
    uniformity: list[float]  # (H,) entropy as a share of that of uniform attention
    largest: float  # score, before the softmax
    maps: Tensor  # (H, T, T) of the first tokens of the first sequence


def attended(scores: Tensor, weights: Tensor) -> Attended:
    """(B, H, T, S) scores and weights -> figures. The first token, which has no choice, is left out."""
    entropy = torch.special.entr(weights).sum(-1)[..., 1:]  # (B, H, T-1)
    choices = scores.isfinite().sum(-1)[..., 1:]
    share = entropy / choices.clamp(min=2).log()
    maps = weights[0, :, :MAP_TOKENS, :MAP_TOKENS].cpu()
    means = [of.mean((0, 2)).tolist() for of in (entropy, share)]
    return Attended(means[0], means[1], scores.max().item(), maps)


@dataclass
class Layer:
    """What one forward pass left of a layer."""

    name: str
    entered: Tensor | None = None  # (B, T, C)
    left: Tensor | None = None  # (B, T, C); None for a layer with another output
    attention: list[Attended] = field(default_factory=list)
    silent: list[Tensor] = field(default_factory=list)  # (units,) whether a ReLU gave 0 for all


class Recorder(TorchFunctionMode):
    """Looks into the forward passes that are made inside of `with Recorder(net) as recorder`.

    It changes neither results nor random states. Of several passes, the last one counts.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._layers = {module: Layer(name) for name, module in layers_of(net).items()}
        self._running: Layer | None = None
        self._hooks: list[Any] = []

    @property
    def layers(self) -> list[Layer]:
        return [*self._layers.values()]

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        entered = next((x.detach() for x in inputs if isinstance(x, Tensor)), None)
        self._running = self._layers[module] = Layer(self._layers[module].name, entered)

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._layers[module].left = output.detach() if isinstance(output, Tensor) else None
        self._running = None

    def __enter__(self) -> Self:
        for module in self._layers:
            self._hooks.append(module.register_forward_pre_hook(self._enter))
            self._hooks.append(module.register_forward_hook(self._leave))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._running and func is F.scaled_dot_product_attention:
            with torch.no_grad():
                self._running.attention.append(attended(*attention_weights(*args, **kwargs)))
        elif self._running and func in RELUS:
            silent = (kwargs.get("input", *args[:1]) <= 0).flatten(0, -2).all(0)
            self._running.silent.append(silent)
        return func(*args, **kwargs)


def rms_of(x: Tensor) -> float:
    """Root mean square."""
    return float(x.float().square().mean().sqrt())


def figures_of_layer(layer: Layer) -> dict[str, float]:
    """What was recorded of a layer, in numbers: those that the net shows."""
    figures: dict[str, float] = {}
    entered, left, attention = layer.entered, layer.left, layer.attention
    if left is not None:
        figures["activation_rms"] = rms_of(left)
        figures["activation_largest"] = float(left.abs().max())
        if entered is not None and entered.shape == left.shape and (size := rms_of(entered)):
            figures["added_share"] = rms_of(left - entered) / size  # of what entered
    if attention:
        for name in ("entropy", "uniformity"):  # nats, and the share of uniform attention's
            heads = [head for one in attention for head in getattr(one, name)]
            figures[f"attention_{name}"] = sum(heads) / len(heads)
        figures["largest_score"] = max(one.largest for one in attention)
    if layer.silent:  # share of ReLU units that gave 0 for every token
        figures["dead_units"] = float(torch.cat(layer.silent).float().mean())
    return figures


def figures_of_parts(net: nn.Module) -> list[dict[str, Any]]:
    """Weights of each part of the net that has a gradient, and that of one batch."""
    named, found, norm = dict(net.named_parameters()), [], nn.utils.get_total_norm
    for part, names in parameters_by_part(net).items():
        weights = [named[name].detach() for name in names]
        gradients = [g for name in names if (g := named[name].grad) is not None]
        if gradients:
            root, size = sum(w.numel() for w in weights) ** 0.5, float(norm(gradients))
            row = {"name": part, "weights_rms": float(norm(weights)) / root}
            found.append({**row, "gradient_norm": size, "gradient_rms": size / root})
    return found


def update_ratios(
    net: nn.Module, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> dict[str, float]:
    """Part -> size of the change between two states of the weights, as a share of the weights.

    That of `vitals.update_size`, of all weights. Parts that were all zeros are left out.
    """
    norm, ratios = nn.utils.get_total_norm, dict[str, float]()
    for part, names in parameters_by_part(net).items():
        old = [before[name].detach() for name in names]
        moved = [after[name].detach() - was for name, was in zip(names, old, strict=True)]
        if size := float(norm(old)):
            ratios[part] = float(norm(moved)) / size
    return ratios
