"""TRL's SFTTrainer with a loss that is computed only where an answer is learned, and what a person sees of a run."""

from __future__ import annotations

import math
import signal
import time
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from trl.trainer.sft_trainer import SFTTrainer

from medchat.errors import UserError


class AnswerTrainer(SFTTrainer):
    """SFTTrainer for a model that returns its loss itself (kernels.use_answer_loss); it stops at a loss of NaN."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss in nats per learned token; raises UserError when it is not a number any more."""
        inputs = {**inputs, "use_cache": False}
        # Not SFTTrainer's, which wants log-probabilities and entropies of every token.
        loss: Any = Trainer.compute_loss(self, model, inputs, num_items_in_batch=num_items_in_batch)
        # On held-out rows too: they are read before a checkpoint is saved, which must not hold broken weights.
        if not math.isfinite(loss.item()):
            raise UserError(
                f"The loss is no longer a number at step {self.state.global_step + int(model.training)}.",
                "Lower sft.learning_rate, or look for broken rows with: python -m train check RECIPE.",
            )
        mode = "train" if model.training else "eval"
        if mode == "train":
            tokens = torch.tensor(inputs["input_ids"].numel(), device=loss.device)
            gathered: Any = self.accelerator.gather(tokens)
            self._total_train_tokens += gathered.sum().item()
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        return (loss, {}) if return_outputs else loss

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: TRL's says nothing about health, and ours is written when an adapter is published."""


class Progress(TrainerCallback):
    """Prints step, loss, tokens/s and time left at every log, the held-out loss at every evaluation."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start, self._first, self._evaluating = time.time(), state.global_step, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._before_evaluation = time.time()
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True  # the last step is a candidate for the best one too

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self._evaluating += time.time() - self._before_evaluation

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "eval_loss" in logs:
            print(f"  held out: {logs['eval_loss']:.4f} nats per token", flush=True)
        elif "loss" in logs:
            # Tokens are counted from the start of this process, also in a run that goes on from a checkpoint.
            done, tokens = state.global_step - self._first, logs.get("num_tokens", 0)
            training = time.time() - self._start - self._evaluating
            left = (time.time() - self._start) / max(done, 1) * (state.max_steps - state.global_step)
            print(
                f"step {state.global_step}/{state.max_steps}  loss {float(logs['loss']):.4f}"
                f"  {tokens / training:.0f} tokens/s  {left / 60:.0f} min left",
                flush=True,
            )


class SaveOnInterrupt(TrainerCallback):
    """Ctrl-C ends the run after the current step, with a checkpoint; a second one ends it at once, without.

    Under `accelerate launch` every process hears of it before any of them stops.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._previous = signal.signal(signal.SIGINT, self._hear)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.interrupted:
            self.trainer.accelerator.set_trigger()
        if self.trainer.accelerator.check_trigger():
            self.interrupted = True
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.restore()

    def restore(self) -> None:
        """Give Ctrl-C back its usual meaning."""
        if (previous := self.__dict__.pop("_previous", None)) is not None:
            signal.signal(signal.SIGINT, previous)

    def _hear(self, *_: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        print("\nInterrupted: saving after this step. Press Ctrl-C again to stop at once.", flush=True)
