"""Saying so when a run does not learn."""

from dataclasses import dataclass

import numpy as np

from audiocls.config import USUAL_BATCH_SIZE, TrainConfig
from audiocls.metrics import guessing_accuracy

FEWEST_STEPS = 10  # a shorter run was not meant to learn
MOSTLY = 0.9


@dataclass
class ChanceAlarm:
    """Says once, after half of the steps or two epochs, that the model still guesses, and what usually helps.

    It guesses where the loss is about that of answering every clip with the classes' shares (their entropy:
    ln(classes) where all are equal), and the accuracy about that of always naming the largest.
    """

    config: TrainConfig
    shares: np.ndarray  # float64 [labels], of the evaluation's clips in each class
    has_feature_encoder: bool = True  # that could be frozen
    used_share: float = 0.0  # of the training clips' audio
    rang: bool = False

    def __call__(self, progress: float, epoch: float, scores: dict[str, float]) -> str | None:
        """`progress`: the share of the steps that are done."""
        few = (
            self.config.max_steps is not None and self.config.max_steps < FEWEST_STEPS
        )  # so few that learning was not expected
        if self.rang or few or progress < 0.2 or (progress < 0.5 and epoch < 2):
            return None
        chance, clips = self.shares.max(), scores["num_clips"]
        there = self.shares[self.shares > 0]
        if len(there) < 2:
            return None
        entropy = -(there * np.log(there)).sum()
        if scores["loss"] < 0.95 * entropy or scores["accuracy"] > guessing_accuracy(chance, clips):
            return None
        self.rang = True
        return (
            f"note: the model still guesses: accuracy {scores['accuracy']:.1%} where always naming one label "
            f"gives {chance:.1%}, loss {scores['loss']:.3f} where knowing only how frequent the labels are "
            f"gives {entropy:.3f}. What usually helps: {self.advice()}."
        )

    def advice(self) -> str:
        config = self.config
        epochs = int(config.epochs)
        steps = f"--max-steps {4 * config.max_steps}" if config.max_steps else f"--epochs {4 * epochs}"
        found = [f"more steps ({steps})"]
        rate = "3e-3" if config.freeze == "encoder" else "1e-4"  # that has learned where lower ones have not
        if config.model == "tiny":
            if float(config.learning_rate) < 1e-3:
                found.append("--recipe scratch, for random weights")
        elif float(config.learning_rate) < float(rate):
            found.append(f"--learning-rate {rate}")
        if config.clips_per_step > USUAL_BATCH_SIZE:
            found.append(f"smaller steps (--global-batch-size {USUAL_BATCH_SIZE})")
        if config.max_seconds is not None and config.max_seconds < 5 and self.used_share < MOSTLY:
            found.append("longer clips (--max-seconds 5, or none)")
        if config.model != "tiny" and self.has_feature_encoder and config.freeze == "nothing":
            found.append("--freeze feature-encoder")
        return ", ".join(found)
