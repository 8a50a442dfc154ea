"""Typed, frozen parameters: one class per section of params.yaml, with the defaults of the embedded run."""

import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from knee_siglip.core.nesting import flatten
from knee_siglip.task.knee import FINDINGS, KL_PROMPTS

RAD_DINO = "microsoft/rad-dino"
SIGLIP = "google/siglip-base-patch16-224"
SMALL = "small"
PATCH_SIZES = {SMALL: 28, RAD_DINO: 14}

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["auto", "bf16", "fp16", "none"]
BestMetric = Literal["val.loss", "val.contrastive_accuracy", "val_ema.loss", "val_ema.contrastive_accuracy"]


class Section(BaseModel):
    """A section: immutable, no unknown keys, no silent conversion of text to numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataParams(Section):
    """Which rows and images are used."""

    csv: str = "data/sample/train.csv"
    images: str = "data/sample/images"
    patient_id_pattern: str | None = None


class SampleParams(Section):
    """The synthetic knees of the embedded default."""

    patients: Annotated[int, Field(ge=8)] = 1060
    seed: Annotated[int, Field(ge=0)] = 0
    size: Annotated[int, Field(ge=512, le=4096)] = 512


class ValidateParams(Section):
    """What happens to rows that leak between splits."""

    on_leak: Literal["error", "drop", "warn"] = "error"


class PreprocessParams(Section):
    """The image transform. `fit`: pad keeps everything, crop fills the square. `contrast`: local or none.

    `inversion`: keep, or correct what seems to have bright and dark exchanged (docs/inversion.md).
    """

    fit: Literal["pad", "crop"] = "pad"
    contrast: Literal["local", "none"] = "local"
    inversion: Literal["keep", "correct"] = "keep"


class ModelParams(Section):
    """The encoders (`small`, a hub id with its 40-digit revision, or a local folder) and what joins them."""

    vision: str = SMALL
    vision_revision: str = ""
    text: str = SMALL
    text_revision: str = ""
    projection: Literal["linear", "mlp"] = "linear"
    max_text_length: Annotated[int, Field(ge=8, le=4096)] = 64
    temperature: PositiveFloat = 0.07
    bias_init: float | Literal["auto"] = "auto"


Freeze = Literal["none", "all"] | PositiveInt


class FreezeParams(Section):
    """Which weights of each tower are kept: none, all, or (a number n) all but the last n blocks and the final norm."""

    vision: Freeze = "none"
    text: Freeze = "none"


class GradientCheckpointingParams(Section):
    """Towers whose activations are computed again in the backward pass: less memory, about a third more time."""

    vision: bool = False
    text: bool = False


class AugmentParams(Section):
    """Random changes of the training images; each is a maximum, 0 turns it off.

    `rotation` in degrees, `shift` and `scale` as a share of the side, `brightness`, `contrast` and `noise` as a share
    of the grey range, `gamma` as the exponent's distance from 1 on a log scale.
    """

    rotation: NonNegativeFloat = 5.0
    shift: Fraction = 0.04
    scale: Fraction = 0.05
    brightness: Fraction = 0.1
    contrast: Fraction = 0.1
    gamma: Fraction = 0.1
    noise: Fraction = 0.02


class TrainParams(Section):
    """Optimisation. `batch_size` pairs times `gradient_accumulation_steps` meet in one exact contrastive batch.

    Both count the pairs of all devices together, so that the number of devices changes no result. `micro_batch_size`
    (pairs that one device encodes at a time) changes none either; `auto` halves it where the GPU's memory ends.
    """

    batch_size: Annotated[int, Field(ge=2)] = 64
    epochs: PositiveInt = 8
    learning_rate: PositiveFloat = 2e-3
    vision_learning_rate_scale: PositiveFloat = 0.1
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    weight_decay: NonNegativeFloat = 0.01
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.05
    gradient_accumulation_steps: PositiveInt = 1
    micro_batch_size: PositiveInt | Literal["auto"] = "auto"
    max_grad_norm: PositiveFloat | None = 1.0
    mixed_precision: Precision = "auto"
    tf32: bool = True
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    compile: bool = False
    gradient_checkpointing: GradientCheckpointingParams = GradientCheckpointingParams()
    prefetch: Annotated[int, Field(ge=0, le=16)] | Literal["auto"] = "auto"
    multi_positive: bool = True
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    best_metric: BestMetric = "val.contrastive_accuracy"
    patience: PositiveInt | None = None
    max_skipped_steps: Annotated[int, Field(ge=0)] = 3
    save_every_minutes: PositiveFloat = 5.0
    save_every_steps: PositiveInt | None = None
    cache_frozen_features: bool = True
    freeze: FreezeParams = FreezeParams()
    augment: AugmentParams = AugmentParams()

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _reference_flag(cls, value: object) -> object:
        """The reference's `true` and `false` live on as `auto` and `none`."""
        return {True: "auto", False: "none"}.get(value, value) if isinstance(value, bool) else value

    @field_validator("micro_batch_size", mode="before")
    @classmethod
    def _null_is_auto(cls, value: object) -> object:
        """Older params files say null."""
        return "auto" if value is None else value

    @model_validator(mode="after")
    def _best_metric_exists(self) -> Self:
        if self.best_metric.startswith("val_ema.") and self.ema_decay is None:
            raise ValueError(f"best_metric = {self.best_metric!r} needs ema_decay, such as 0.999")
        return self


Grade = Literal["0", "1", "2", "3", "4"]

Prompts = Annotated[list[str], Field(min_length=1)]


class FindingParams(Section):
    """A finding that is looked for without training: prompts for it and against it, and what knows the truth.

    The truth is a `column` (1, true, yes, present; or a JSON list of findings that names this one), or `text`, a
    regular expression that the impression matches somewhere, not negated.
    """

    positive: Prompts
    negative: Prompts
    column: str | None = None
    text: str | None = None

    @model_validator(mode="after")
    def _one_truth(self) -> Self:
        if (self.column is None) == (self.text is None):
            raise ValueError("give exactly one of column and text, which tells who has the finding")
        if self.text is not None:
            try:
                re.compile(self.text)
            except re.error as error:
                raise ValueError(f"text = {self.text!r} is no regular expression: {error}") from None
        return self


FindingName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]


class GroundingParams(Section):
    """Maps of where in the image a finding's prompts look.

    `images`: at most so many with boxes are measured, 0 turns it off. `window`: patches along the side of the square
    that is hidden at a time; null: a quarter of the image's side.
    """

    images: Annotated[int, Field(ge=0)] = 64
    window: PositiveInt | None = None


class EvaluateParams(Section):
    """`kl_prompts`: the texts whose mean embedding stands for each Kellgren-Lawrence grade.

    `findings`: what else is looked for. `subgroups`: columns by whose values the headline metrics are told apart.
    `robustness`: measure disturbed images too. `gallery`: queries shown on the page.
    """

    splits: Annotated[list[Literal["train", "val", "test"]], Field(min_length=1)] = ["test"]
    batch_size: Annotated[int, Field(ge=2)] = 64
    kl_prompts: dict[Grade, Prompts] = {grade: KL_PROMPTS[grade] for grade in get_args(Grade)}
    findings: dict[FindingName, FindingParams] = {name: FindingParams(**values) for name, values in FINDINGS.items()}
    subgroups: list[str] = ["side", "view", "kl_grade"]
    robustness: bool = True
    grounding: GroundingParams = GroundingParams()
    gallery: Annotated[int, Field(ge=0, le=100)] = 6

    @field_validator("kl_prompts", mode="before")
    @classmethod
    def _grades_as_text(cls, value: object) -> object:
        """YAML reads the grades as numbers; JSON and checkpoints can only hold text keys."""
        return {str(grade): prompts for grade, prompts in value.items()} if isinstance(value, dict) else value

    @field_validator("kl_prompts")
    @classmethod
    def _every_grade(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        if missing := sorted(set("01234") - set(value)):
            raise ValueError(f"no prompts for grade {', '.join(missing)}; every grade 0-4 needs at least one")
        return value


class InferParams(Section):
    """`csv_path`: a CSV with `img_path`, or the manifest, of which the rows of `split` are taken.

    No `queries`: the usual ones.
    """

    csv_path: str = "data/validated/manifest.parquet"
    split: Literal["train", "val", "test"] = "test"
    batch_size: PositiveInt = 64
    queries: list[str] = []


class TrackingParams(Section):
    """Where experiments are logged. Changing this section reruns nothing.

    `mlflow`: `auto` ($MLFLOW_TRACKING_URI, else SQLite in the project), a tracking URI, or `none`.
    """

    project_name: str = "knee-siglip"
    experiment_name: str | None = None
    mlflow: str = "auto"
    wandb: Literal["offline", "online", "none"] = "offline"
    log_checkpoints: Literal["copy", "reference", "none"] = "reference"


class Params(Section):
    """The whole of params.yaml. The defaults are the embedded default run."""

    image_size: Annotated[int, Field(ge=28, le=4096)] = 224
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: DataParams = DataParams()
    sample: SampleParams = SampleParams()
    validate_: ValidateParams = Field(default=ValidateParams(), alias="validate")
    preprocess: PreprocessParams = PreprocessParams()
    model: ModelParams = ModelParams()
    train: TrainParams = TrainParams()
    evaluate: EvaluateParams = EvaluateParams()
    infer: InferParams = InferParams()
    tracking: TrackingParams = TrackingParams()

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict with the keys of params.yaml."""
        return self.model_dump(by_alias=True)

    def flat(self) -> dict[str, Any]:
        """Dotted keys to values, as trackers show them: `train.learning_rate: 0.001`."""
        return flatten(self.to_dict())
