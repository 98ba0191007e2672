"""The three places where training a Llama spends more than it must, computed better; results stay the same.

The output head works only where an answer is learned; a pack's conversations attend each to itself instead of through
one large mask; a LoRA layer is one step of autograd instead of seven. Measured in benchmarks/train.py.
"""

from __future__ import annotations

import types
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

# Positions whose logits exist at once: 512 rows of a 49,152-word vocabulary are 100 MB in fp32.
CHUNK = 512


class AnswerLoss(torch.autograd.Function):
    """Summed cross-entropy of a linear head, its gradients formed in the forward pass, chunk by chunk.

    hidden (n, d), weight (vocabulary, d), targets (n,) -> a scalar in nats. Two matrix products a chunk (three where
    the head is trained) instead of recomputation, and never more than CHUNK rows of logits.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        needs_hidden, needs_weight, _ = ctx.needs_input_grad
        gradient = torch.empty_like(hidden) if needs_hidden else None
        weight_gradient = torch.zeros_like(weight) if needs_weight else None
        for rows in torch.arange(hidden.shape[0], device=hidden.device).split(CHUNK):
            part = hidden[rows].to(weight.dtype)
            logits = (part @ weight.T).float()
            log_total = torch.logsumexp(logits, dim=-1, keepdim=True)
            target = targets[rows].unsqueeze(1)
            loss += (log_total - logits.gather(1, target)).sum()
            if gradient is None and weight_gradient is None:
                continue
            probabilities = torch.exp(logits.sub_(log_total), out=logits)
            probabilities.scatter_add_(1, target, torch.full_like(target, -1, dtype=probabilities.dtype))
            probabilities = probabilities.to(weight.dtype)
            if gradient is not None:
                gradient[rows] = (probabilities @ weight).to(gradient.dtype)
            if weight_gradient is not None:
                weight_gradient += probabilities.T @ part
        ctx.save_for_backward(gradient, weight_gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        scale, (hidden, weight) = gradients[0], ctx.saved_tensors
        return (
            None if hidden is None else hidden * scale.to(hidden.dtype),
            None if weight is None else weight * scale.to(weight.dtype),
            None,
        )


def use_answer_loss(model: Any) -> None:
    """Make a LlamaForCausalLM that is given labels return the AnswerLoss, per learned token, and no logits.

    The loss is computed inside the model's own forward, so the wrappers of DDP, FSDP and DeepSpeed see it.
    """
    from transformers.modeling_outputs import CausalLMOutputWithPast

    original = type(model).forward

    def forward(self: Any, *args: Any, labels: Any = None, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        if labels is None:
            return original(self, *args, **kwargs)
        hidden = self.model(*args, **kwargs).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        learned = targets != -100
        count = learned.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        loss = AnswerLoss.apply(hidden[learned], self.lm_head.weight, targets[learned]) / count
        return CausalLMOutputWithPast(loss=loss)

    model.forward = types.MethodType(forward, model)


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    position_ids: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return causal attention within each conversation of a pack, as (1, tokens, heads, size).

    query, key, value are (1, heads, tokens, size); a conversation begins where `position_ids` (1, tokens) is 0. A mask
    of the whole pack would cost its length squared, and on a CPU there is no flash attention.
    """
    groups = query.shape[1] // key.shape[1]
    edges = [*(position_ids[0] == 0).nonzero().flatten().tolist(), query.shape[2]]
    parts = []
    for start, end in pairwise(edges):
        q, k, v = (x[:, :, start:end] for x in (query, key, value))
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        part = scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling)
        parts.append(part.transpose(1, 2))
    return torch.cat(parts, dim=1), None


def use_packed_attention(model: Any) -> None:
    """Let `model` attend through packed_attention; for packs on a CPU only."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register("medchat_packed", packed_attention)
    AttentionMaskInterface.register("medchat_packed", lambda *args, **kwargs: None)
    model.set_attn_implementation("medchat_packed")


class LoraLinear(torch.autograd.Function):
    """x Wᵀ + scale (x Aᵀ) Bᵀ with a frozen W, in one step of autograd.

    x (n, in), W (out, in), A (r, in), B (out, r) -> (n, out)
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float
    ) -> torch.Tensor:
        reduced = x @ a.T
        ctx.save_for_backward(x, weight, a, b, reduced)
        ctx.scale = scale
        return (x @ weight.T).addmm_(reduced, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        x, weight, a, b, reduced = ctx.saved_tensors
        through = (gradient @ b).mul_(ctx.scale)
        inner = (gradient @ weight).addmm_(through, a) if ctx.needs_input_grad[0] else None
        return inner, None, through.T @ x, (gradient.T @ reduced).mul_(ctx.scale), None


def use_fused_lora(model: Any) -> int:
    """Let the plain LoRA layers of a PEFT model compute through LoraLinear; return how many do.

    Plain means one adapter without dropout on a full-precision linear layer without bias, all in one type.
    """
    from peft.tuners.lora import Linear

    found = 0
    for module in model.modules():
        if type(module) is not Linear or len(module.active_adapters) != 1:
            continue
        name, base = module.active_adapters[0], module.get_base_layer()
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
        plain = type(base) is torch.nn.Linear and base.bias is None and not base.weight.requires_grad
        plain = plain and isinstance(module.lora_dropout[name], torch.nn.Identity) and not module.use_dora[name]
        if plain and base.weight.dtype == a.dtype == b.dtype:
            module.forward = types.MethodType(_fused_forward, module)
            found += 1
    return found


def _fused_forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if self.disable_adapters or self.merged or not torch.is_grad_enabled():
        return type(self).forward(self, x, *args, **kwargs)
    name = self.active_adapters[0]
    flat = x.reshape(-1, x.shape[-1])
    weights = self.get_base_layer().weight, self.lora_A[name].weight, self.lora_B[name].weight
    return LoraLinear.apply(flat, *weights, self.scaling[name]).view(*x.shape[:-1], -1)
