"""TRL's SFTTrainer with the output head computed only where an answer is learned, and one line of progress."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import TrainerCallback
from trl.trainer.sft_trainer import SFTTrainer

# Positions whose logits exist at once: 512 rows of a 49,152-word vocabulary are 100 MB in fp32.
CHUNK = 512


class AnswerLoss(torch.autograd.Function):
    """Summed cross-entropy of a frozen linear head, its gradient formed in the forward pass, chunk by chunk.

    hidden (n, d), weight (vocabulary, d), targets (n,) -> a scalar in nats. Two matrix products a chunk instead of the
    three of recomputation, and never more than CHUNK rows of logits.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        for rows in torch.arange(hidden.shape[0], device=hidden.device).split(CHUNK):
            logits = (hidden[rows] @ weight.T).float()
            log_total = torch.logsumexp(logits, dim=-1, keepdim=True)
            target = targets[rows].unsqueeze(1)
            loss += (log_total - logits.gather(1, target)).sum()
            probabilities = torch.exp(logits.sub_(log_total), out=logits)
            probabilities.scatter_add_(1, target, torch.full_like(target, -1, dtype=probabilities.dtype))
            gradient[rows] = probabilities.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None


class AnswerTrainer(SFTTrainer):
    """SFTTrainer whose loss is the mean over the learned tokens, as TRL's, without logits for the prompt's tokens."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss in nats per learned token; the head must be frozen, as it is under LoRA."""
        inputs = dict(inputs)
        labels = inputs.pop("labels")[:, 1:]
        language_model = self.accelerator.unwrap_model(model).get_base_model()
        hidden = language_model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
        learned = labels != -100
        count = learned.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        loss = AnswerLoss.apply(hidden[learned], language_model.lm_head.weight, labels[learned]) / count
        mode = "train" if model.training else "eval"
        if mode == "train":
            self._total_train_tokens += inputs["input_ids"].numel()
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        return (loss, {}) if return_outputs else loss


class ProgressLine(TrainerCallback):
    """Prints step, loss, tokens/s and time left at every log, and the held-out loss at every evaluation."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start, self._first, self._tokens = time.time(), state.global_step, None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        logs = logs or {}
        if "eval_loss" in logs:
            print(f"  held out: {logs['eval_loss']:.4f} nats per token", flush=True)
        elif "loss" in logs:
            seconds, done = time.time() - self._start, state.global_step - self._first
            tokens = logs.get("num_tokens", 0)
            if self._tokens is None:
                self._tokens = 0 if self._first == 0 else tokens
            left = seconds / max(done, 1) * (state.max_steps - state.global_step)
            print(
                f"step {state.global_step}/{state.max_steps}  loss {float(logs['loss']):.4f}"
                f"  {(tokens - self._tokens) / seconds:.0f} tokens/s  {left / 60:.0f} min left",
                flush=True,
            )
