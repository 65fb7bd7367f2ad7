"""Named sets of settings for train.py, each setting with where it comes from: what --recipe lists.

A recipe's settings override the defaults of config.TrainConfig; config files and flags override them. "auto"
is settled by training/rules.py once the data is known.
"""

from typing import Any, NamedTuple

from audiocls.config import GUIDE_DATASET, TrainConfig

GUIDE = "the Hugging Face audio-classification guide"
MEASURED = "measured: docs/recipes.md"
GUIDE_ENDS = (
    "the guide's settings end at chance on its data (18 public runs: 2% to 12% of 14 intents; chance is 7%). "
    "To learn them: --recipe standard"
)


class Setting(NamedTuple):
    """A value, and why it is that."""

    value: Any
    why: str


class Recipe(NamedTuple):
    """A set of settings by name; what it does not set is as in config.TrainConfig."""

    about: str
    settings: dict[str, Setting]

    @property
    def values(self) -> dict[str, Any]:
        return {name: setting.value for name, setting in self.settings.items()}


STANDARD = {
    "max_seconds": Setting(15.0, "whole clips: of MInDS-14 the first second is not enough for its intents"),
    "augment": Setting("mask", f"SpecAugment, arXiv 1904.08779; {MEASURED}"),
    "head_first": Setting(True, f"LP-FT, arXiv 2202.10054; {MEASURED}"),
    "cut_window": Setting(
        True, "a window of 30 s on clips of 2 s is fifteen times the work, and mostly silence"
    ),
    "freeze": Setting(
        "auto", "the convolutions: a quarter less work, 2 points better on IEMOCAP (speechbrain#970)"
    ),
    "batch_size": Setting(8, "for the same audio, more steps"),
    "gradient_accumulation_steps": Setting(1, "for the same audio, more steps"),
    "epochs": Setting("auto", "fine-tuning takes hundreds of steps: arXiv 2006.05987"),
    "learning_rate": Setting(
        "auto", "1e-4 for WavLM-base+ (adapter-wavlm), 3e-5 for Whisper: docs/recipes.md"
    ),
    "weight_decay": Setting(0.01, "AdamW's usual"),
    "balance_classes": Setting("auto", MEASURED),
    "eval_every": Setting("auto", "the best of 20 checkpoints"),
    "best_metric": Setting("macro_f1", "each class counts alike"),
    "log_every": Setting(50, "a line every 10 steps would be hundreds"),
}

PRETRAINED_ONLY = ("head_first", "cut_window", "freeze")

RECIPES = {
    "guide": Recipe(
        f"{GUIDE}, faithfully (the default for its data set)",
        {name: Setting(getattr(TrainConfig(), name), GUIDE) for name in STANDARD},
    ),
    "standard": Recipe("learns from your own clips (the default for any other data)", STANDARD),
    "frozen": Recipe(
        "a first answer in minutes: a head on a pretrained encoder, whose output is computed once",
        {
            "max_seconds": STANDARD["max_seconds"],
            "cut_window": STANDARD["cut_window"],
            "freeze": Setting(
                "encoder", "of each layer the mean over a clip, weighted: SUPERB, arXiv 2105.01051"
            ),
            "learning_rate": Setting("auto", f"1e-2 for a head alone, {MEASURED}"),
            "batch_size": Setting(32, MEASURED),
            "gradient_accumulation_steps": Setting(1, "see standard"),
            "epochs": Setting("auto", "see standard"),
            "balance_classes": STANDARD["balance_classes"],
            "eval_every": Setting("auto", "5 times: each saves a whole model"),
            "best_metric": STANDARD["best_metric"],
            "log_every": STANDARD["log_every"],
        },
    ),
    "scratch": Recipe(
        "standard, of a small model with random weights: no download",
        {
            "model": Setting("tiny", "0.4 million weights, a clip in milliseconds"),
            **{name: setting for name, setting in STANDARD.items() if name not in PRETRAINED_ONLY},
            "learning_rate": Setting("auto", "3e-3 for random weights"),
            "augment": Setting(None, f"it slows the learning of random weights: {MEASURED}"),
            "batch_size": Setting(32, MEASURED),
        },
    ),
    "demo": Recipe(
        "a minute, on sounds that are made here",
        {
            "dataset": Setting("demo", "ten kinds of sound, made in seconds"),
            "model": Setting("tiny", "0.4 million weights"),
            "learning_rate": Setting(2e-3, "random weights"),
            "batch_size": Setting(8, "for the same audio, more steps"),
            "gradient_accumulation_steps": Setting(2, "so that accumulation can be seen at work"),
            "epochs": Setting(14, "by then it tells all ten apart"),
        },
    ),
}


GUIDE_AT_CHANCE = {"dataset": GUIDE_DATASET, **RECIPES["guide"].values}


def usual_recipe(dataset: Any) -> str:
    """The recipe that runs where none is named."""
    return "guide" if dataset == GUIDE_DATASET else "standard"


def settings_of(recipe: str, typed: dict[str, Any]) -> dict[str, Any]:
    """What a recipe sets beside what was `typed`: no augmentation where a frozen part sees each clip once."""
    values = RECIPES[recipe].values
    if typed.get("cache_features") or typed.get("freeze") == "encoder":
        values.pop("augment", None)
    if typed.get("batch_size") == "auto":  # which is about memory: the steps stay as they are
        values["global_batch_size"] = TrainConfig(**values).clips_per_step
    return values
