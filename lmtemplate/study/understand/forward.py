"""A net and token ids (T,) -> every stage up to the logits, by formulas written out by hand.

The nets of lmtemplate.models are computed anew from their weights, without a call of their code.
What no formula stands here for, as another architecture, is shown as its modules put it out.
"""

import copy
import math
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode

from lmtemplate.models.base import LanguageModel
from lmtemplate.models.layers import MLP, Attention, Rotary
from lmtemplate.study.understand.predictions import softmax_of, target_nats

RMS_EPS = torch.finfo(torch.float32).eps  # what torch adds in an RMS norm of float32
Text = tuple[Tensor, Tensor]  # ids (T,) and the ids that follow them (T,)


Net = TypeVar("Net", bound=nn.Module)


class ValuesOnly(TorchFunctionMode):
    """While this is entered, a deep copy of a tensor with a gradient history is its values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def copy_of(net: Net) -> Net:
    """A deep copy, also of a net that keeps tensors of its forward pass, which torch refuses."""
    with ValuesOnly():
        return copy.deepcopy(net)


class Stage(NamedTuple):
    """One step of the forward pass."""

    name: str  # of the module whose output it is, or, of a step inside a module, one of its own
    formula: str  # how it is computed
    value: Tensor  # what comes out


def _norm(layer: nn.LayerNorm | None, x: Tensor) -> Tensor:
    """Of a LayerNorm; without one, x over the root of its mean square."""
    if layer is None:
        return x / (x.square().mean(-1, keepdim=True) + RMS_EPS).sqrt()
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight
    return scaled if layer.bias is None else scaled + layer.bias


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    product = x @ layer.weight.T
    return product if layer.bias is None else product + layer.bias


def _rotate(rotary: Rotary, x: Tensor) -> Tensor:
    """Each pair of channels as a complex number, times e^(i angle of its position)."""
    half = x.size(-1) // 2
    turn = torch.complex(rotary.cosines[:, :half], rotary.sines[:, half:])[: x.size(-2)]
    turned = torch.complex(*x.contiguous().chunk(2, dim=-1)) * turn
    return torch.cat((turned.real, turned.imag), dim=-1)


def _attention(brick: Attention, x: Tensor, name: str) -> list[Stage]:
    """(T, C) -> scores, weights and output; D is the head size."""
    size, formula = brick.head_size, f"q·k / sqrt({brick.head_size})"
    queries, keys, values = (  # (H, T, D)
        _linear(layer, x).unflatten(-1, (-1, size)).transpose(0, 1)
        for layer in (brick.query, brick.key, brick.value)
    )
    if brick.qk_norm:
        queries, keys = _norm(None, queries), _norm(None, keys)
        formula += ", over their RMS"
    if brick.rotary is not None:
        queries, keys = _rotate(brick.rotary, queries), _rotate(brick.rotary, keys)
        formula += ", turned by position"
    keys, values = (part.repeat_interleave(brick.shared_by, dim=0) for part in (keys, values))
    scores = queries @ keys.mT / math.sqrt(size)  # (H, T, T)
    later = torch.ones_like(scores, dtype=torch.bool).triu(1)
    weights = softmax_of(scores.masked_fill(later, -torch.inf))
    output = _linear(brick.output, (weights @ values).transpose(0, 1).flatten(1))  # (T, C)
    return [
        Stage(f"{name} scores", formula, scores),
        Stage(f"{name} weights", "mask: later tokens get -inf; softmax", weights),
        Stage(name, "W_o (sum of weight · v)", output),
    ]


def _mlp(brick: MLP, x: Tensor, name: str) -> Stage:
    hidden, formula = _linear(brick.up, x), "W_out gelu(W_up x)"
    if brick.gate is not None:
        gate = _linear(brick.gate, x)
        hidden, formula = gate / (1 + (-gate).exp()) * hidden, "W_out (silu(W_gate x) · W_up x)"
    elif brick.activation == "gelu":
        inner = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
        hidden = 0.5 * hidden * (1 + inner.tanh())
    elif brick.activation == "exact_gelu":
        hidden = 0.5 * hidden * (1 + (hidden / math.sqrt(2)).erf())
    else:
        hidden, formula = hidden.clamp(min=0) ** 2, "W_out max(0, W_up x)^2"
    return Stage(name, formula, _linear(brick.output, hidden))


def _blocks(net: Any, x: Tensor) -> list[Stage]:
    """The residual stream (T, C) through all blocks; attention and MLP read it, and add to it."""
    stages = list[Stage]()
    for number, block in enumerate(net.blocks):
        name = f"blocks.{number}"
        normed = _norm(getattr(block, "norm_1", None), x)
        stages += _attention(block.attention, normed, f"{name}.attention")
        x = x + stages[-1].value
        stages.append(_mlp(block.mlp, _norm(getattr(block, "norm_2", None), x), f"{name}.mlp"))
        x = x + stages[-1].value
        stages.append(Stage(name, "x + attention + MLP", x))
    return stages


def _gpt(net: Any, tokens: Tensor) -> list[Stage]:
    """As models/gpt.py says: RMS norms, token shift, a cap on the logits."""
    x = net.embedding.weight[tokens]
    stages = [Stage("embedding", "row of E for each token", x)]
    x = _norm(None, x)
    if net.shift is not None:
        x = x + net.shift.share * torch.cat((torch.zeros_like(x[:1]), x[:-1]))
        stages.append(Stage("shift", "x / RMS, + share · x of the token before", x))
    stages += _blocks(net, x)
    logits, formula = _norm(None, stages[-1].value) @ net.head.weight.T, "W_head (x / RMS)"
    if (cap := net.logit_cap) is not None:
        logits, formula = cap * (logits / cap).tanh(), f"{cap:g} tanh({formula} / {cap:g})"
    return [*stages, Stage("logits", formula, logits)]


def _gpt2(net: Any, tokens: Tensor) -> list[Stage]:
    """As models/gpt2.py says: learned positions, LayerNorm, the embedding as output head."""
    x = net.embedding.weight[tokens]
    stages = [Stage("embedding", "row of E for each token", x)]
    x = x + net.positions.weight[: len(tokens)]
    stages += [Stage("with positions", "+ row of P for each position", x), *_blocks(net, x)]
    logits = _norm(net.norm, stages[-1].value) @ net.embedding.weight.T
    return [*stages, Stage("logits", "E LayerNorm(x)", logits)]


# Class of a net -> its formulas. By name: a clone may have deleted one of the files.
BY_HAND = {"lmtemplate.models.gpt.GPT": _gpt, "lmtemplate.models.gpt2.GPT2": _gpt2}


@torch.no_grad()
def stages_by_hand(net: LanguageModel, tokens: Tensor) -> list[Stage]:
    """All stages of a net whose formulas stand here; none of another."""
    formulas = BY_HAND.get(f"{type(net).__module__}.{type(net).__qualname__}")
    try:
        return formulas(net, tokens) if formulas else []
    except (AttributeError, TypeError, RuntimeError):  # a brick is not what it was
        return []


def stages_of_modules(net: LanguageModel, tokens: Tensor) -> tuple[list[Stage], Tensor]:
    """What each module puts out for ids (T,), the logits at the end; and these with their graph."""
    stages = list[Stage]()
    names = {module: name for name, module in net.named_modules()}

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        if names.get(module) and isinstance(output, Tensor) and output.numel():
            value = (output[0] if output.dim() > 2 else output).detach()
            stages.append(Stage(names[module], type(module).__name__, value))

    with register_module_forward_hook(keep):
        logits: Tensor = net(tokens[None])[0]
    return [*stages, Stage("logits", type(net).__name__, logits.detach())], logits


@torch.no_grad()
def text_loss(net: LanguageModel, text: Text, by_hand: bool) -> float:
    """Mean nats of a text, by formulas from the tokens on, or else from the net's logits on."""
    logits = stages_by_hand(net, text[0])[-1].value if by_hand else net(text[0][None])[0]
    return target_nats(softmax_of(logits.double()), text[1]).mean().item()
