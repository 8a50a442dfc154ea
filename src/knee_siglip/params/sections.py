"""Typed, frozen parameters: one class per section of params.yaml, with the defaults of the embedded run."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from knee_siglip.core.expressions import check_expression, group_count
from knee_siglip.core.nesting import flatten
from knee_siglip.task import knee

RAD_DINO = "microsoft/rad-dino"
SIGLIP = "google/siglip-base-patch16-224"
SMALL = "small"
PATCH_SIZES = {SMALL: 28, RAD_DINO: 14}
LARGEST_IMAGE = 4096
"""Side in pixels."""

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
LearningRate = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
BatchSize = Annotated[int, Field(ge=2, le=2**20)]
"""Pairs: the largest published batches of this loss are 2**20 (Zhai et al. 2023, section 4.1)."""
Precision = Literal["auto", "bf16", "fp16", "none"]
EmbeddingPrecision = Literal["auto", "fp16", "bf16", "float32"]
BestMetric = Literal["val.loss", "val.contrastive_accuracy", "val_ema.loss", "val_ema.contrastive_accuracy"]


def _not_empty(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value


def _printable(value: str) -> str:
    """Slashes are fine: Databricks names experiments by paths."""
    if not value.strip() or not value.isprintable():
        raise ValueError("must be a name without control characters")
    return value


def _distinct(values: list[str]) -> list[str]:
    if len(set(values)) < len(values):
        raise ValueError("names one of them twice")
    return values


Filled = Annotated[str, AfterValidator(_not_empty)]


class Section(BaseModel):
    """A section: immutable, no unknown keys, no silent conversion of text to numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataParams(Section):
    """Which rows and images are used. external: CSV of a second test set; null, or one without rows, is none.

    DVC cannot depend on null: params.yaml names a CSV without rows.
    """

    csv: Filled = "data/sample/train.csv"
    external: Filled | None = None
    images: Filled = "data/sample/images"
    patient_id_pattern: str | None = None

    @field_validator("patient_id_pattern")
    @classmethod
    def _pattern_is_an_expression(cls, value: str | None) -> str | None:
        check_expression("patient_id_pattern", value or "")
        if value is not None and not group_count(value):
            raise ValueError("has no group (...), which tells what of img_path is the patient")
        return value


class SampleParams(Section):
    """The synthetic knees of the embedded default."""

    patients: Annotated[int, Field(ge=8, le=1_000_000)] = 1000
    seed: Annotated[int, Field(ge=0)] = 0
    size: Annotated[int, Field(ge=512, le=4096)] = 512


Prompts = Annotated[list[Filled], Field(min_length=1)]
LabelName = Annotated[str, Field(pattern=r"^\w[\w +-]*$")]
MetricName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]


def _keys_as_text(value: object) -> object:
    """YAML reads grades as numbers; JSON and checkpoints can only hold text keys."""
    if not isinstance(value, dict):
        return value
    found = {str(key): item for key, item in value.items()}
    if len(found) < len(value):
        twice = next(key for key in value if not isinstance(key, str) and str(key) in value)
        raise ValueError(f"has both {twice} and '{twice}', which are one label; quote the key in the file: '{twice}'")
    return found


ByLabel = BeforeValidator(_keys_as_text)


class PositiveParams(Section):
    """The yes-or-no question behind the labels: `lowest` is the first label that counts as yes."""

    name: MetricName
    title: str
    lowest: Annotated[LabelName, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)]


class FindingParams(Section):
    """A zero-shot finding: prompts for it and against it, and its ground truth.

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
        check_expression("text", self.text or "")
        return self


class TaskParams(Section):
    """What is asked of the images: by default osteoarthritis of the knee; another `subject` has no defaults.

    `labels`: the values of column `label_column` in order of severity, with a word for each; empty: no grades.
    `label_patterns`: label to the regular expression by which an impression names it, or `kellgren-lawrence`, which
    reads impressions of knees. `side_words`: regular expression of the anatomy that has a left and a right; null: no
    sides. `normal`: a text for an image without findings, to contrast a phrase with. `queries`: the default texts.
    `label_prompts`: texts that stand for each label. `findings`: zero-shot findings.
    """

    subject: Annotated[str, Field(min_length=1)] = knee.SUBJECT
    label_column: Annotated[str, Field(pattern=r"^\w+$")] = "kl_grade"
    label_title: str = "Kellgren-Lawrence grade"
    label_short: str = "KL grade"
    labels: Annotated[dict[LabelName, str], ByLabel] = knee.GRADE_WORDS
    positive: PositiveParams | None = PositiveParams(**knee.OSTEOARTHRITIS)
    label_patterns: Literal["kellgren-lawrence"] | Annotated[dict[LabelName, str], ByLabel] = "kellgren-lawrence"
    side_words: str | None = knee.SIDE_WORDS
    normal: Annotated[str, Field(min_length=1)] = knee.NORMAL
    queries: list[Filled] = list(knee.USUAL_QUERIES)
    label_prompts: Annotated[dict[LabelName, Prompts], ByLabel] = knee.KL_PROMPTS
    findings: dict[MetricName, FindingParams] = {
        name: FindingParams(**values) for name, values in knee.FINDINGS.items()
    }

    @model_validator(mode="before")
    @classmethod
    def _nothing_of_the_knee(cls, value: Any) -> Any:
        """Another task must not inherit the knee's defaults, nor other labels its prompts."""
        if not isinstance(value, dict):
            return value
        if value.get("subject", knee.SUBJECT) == knee.SUBJECT:
            return {"label_prompts": {}} | value if "labels" in value else value
        nothing: dict[str, Any] = {
            "labels": {},
            "label_patterns": {},
            "queries": [],
            "label_prompts": {},
            "findings": {},
        }
        nothing |= dict.fromkeys(("positive", "side_words"))
        nothing |= dict.fromkeys(("label_column", "label_title", "label_short"), "grade")
        return nothing | {"normal": f"Normal {value['subject']}."} | value

    @field_validator("side_words")
    @classmethod
    def _side_words_are_an_expression(cls, value: str | None) -> str | None:
        check_expression("side_words", value or "")
        return value

    @model_validator(mode="after")
    def _all_about_the_same_labels(self) -> Self:
        labels = list(self.labels)
        if len(labels) == 1:
            raise ValueError("labels has a single one: give two or more in order of severity, or none")
        if self.positive is not None and self.positive.lowest not in labels[1:]:
            raise ValueError(f"positive.lowest = {self.positive.lowest!r}: must be one of labels, not the first")
        if isinstance(self.label_patterns, str):
            if labels != list(knee.GRADE_WORDS):
                raise ValueError("label_patterns = 'kellgren-lawrence' needs the labels 0, 1, 2, 3, 4; give your own")
            return self
        if unknown := sorted(self.label_patterns.keys() - self.labels.keys()):
            raise ValueError(f"label_patterns has {unknown[0]!r}, which is none of labels")
        for label, pattern in self.label_patterns.items():
            check_expression(f"label_patterns.{label}", pattern)
        return self


class ValidateParams(Section):
    """What happens to rows that leak between splits, and to whole reports in the column of impressions.

    `sections`: impression takes that section of a report; keep reads all of it.
    """

    on_leak: Literal["error", "drop", "warn"] = "error"
    sections: Literal["impression", "keep"] = "impression"


class PreprocessParams(Section):
    """The image transform. `fit`: pad keeps everything, crop fills the square. `contrast`: local or none.

    `inversion`: keep, or correct what seems to have bright and dark exchanged (docs/inversion.md).
    """

    fit: Literal["pad", "crop"] = "pad"
    contrast: Literal["local", "none"] = "local"
    inversion: Literal["keep", "correct"] = "keep"


class ModelParams(Section):
    """The encoders (`small`, a hub id with its 40-digit revision, or a local folder) and what joins them.

    `max_text_length`: tokens after which a text is truncated; auto: what the training texts need (`tables/text.py`).
    """

    vision: Filled = SMALL
    vision_revision: str = ""
    text: Filled = SMALL
    text_revision: str = ""
    projection: Literal["linear", "mlp"] = "linear"
    max_text_length: Annotated[int, Field(ge=8, le=4096)] | Literal["auto"] = 64
    temperature: Annotated[float, Field(ge=1e-4, le=1e4)] = 0.07
    bias_init: Annotated[float, Field(ge=-1e4, le=1e4)] | Literal["auto"] = "auto"


Freeze = Literal["none", "all", "lora"] | PositiveInt


class FreezeParams(Section):
    """Frozen weights of each tower: none; all; a number n: all but the last n blocks and the final norm; or lora.

    `lora` freezes all of them and trains low-rank adapters in the blocks, which checkpoints merge into the weights.
    """

    vision: Freeze = "none"
    text: Freeze = "none"


class LoraParams(Section):
    """Adapters of a tower whose `freeze` is `lora`: W + (alpha / rank) B A, with A of `rank` rows."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class GradientCheckpointingParams(Section):
    """Towers that recompute activations in the backward pass: less memory, about a third more time."""

    vision: bool = False
    text: bool = False


class AugmentParams(Section):
    """Largest random changes of the training images and probabilities of those of the texts; 0 turns one off.

    `rotation` in degrees; `shift` and `scale` as a share of the side; `brightness`, `contrast` and `noise` as a share
    of the grey range; `gamma` as the log of the exponent. `sentence_shuffle`: probability that a text's sentences
    change their order; `sentence_drop`: that one is left out (`pairs/sentences.py`). `mirror`: probability that an
    image is mirrored, with left and right exchanged in its text; only where images have a side (`task.side_words`).
    """

    mirror: Fraction = 0.5

    rotation: Annotated[float, Field(ge=0, le=180)] = 5.0
    shift: Fraction = 0.04
    scale: Fraction = 0.05
    brightness: Fraction = 0.1
    contrast: Fraction = 0.1
    gamma: Fraction = 0.1
    noise: Fraction = 0.02
    sentence_shuffle: Fraction = 0.0
    sentence_drop: Fraction = 0.0

    def sentences(self) -> bool:
        """Whether texts are changed."""
        return bool(self.sentence_shuffle or self.sentence_drop)

    def images(self) -> bool:
        """Whether images are changed."""
        return any(value for name, value in self.model_dump().items() if not name.startswith("sentence"))


class WarmUpParams(Section):
    """Training of the image encoder on the training images alone, before the contrastive training; 0 epochs: none.

    `batch_size`: images that are told from one another; they are encoded at once, each of them twice.
    """

    epochs: Annotated[int, Field(ge=0)] = 0
    batch_size: BatchSize = 64
    learning_rate: LearningRate = 5e-4


class TrainParams(Section):
    """Optimisation. One exact contrastive batch has `batch_size` times `gradient_accumulation_steps` pairs.

    Both count the pairs of all devices, so the number of devices does not change the result. Neither does
    `micro_batch_size`, the pairs that one device encodes at a time; `auto` halves it when the GPU runs out of memory.
    `init_from`: a checkpoint of the same encoders, whose weights training starts from. `steps`: optimizer steps; `auto`
    chooses them by the number of training rows (`training/schedule.py`); `epochs`, where given, sets them instead.
    """

    batch_size: BatchSize = 64
    steps: Annotated[int, Field(gt=0, le=10**8)] | Literal["auto"] = "auto"
    epochs: Annotated[int, Field(gt=0, le=10**6)] | None = None
    learning_rate: LearningRate = 2e-3
    vision_learning_rate_scale: Annotated[float, Field(gt=0, le=1000)] = 0.2
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.01
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.05
    gradient_accumulation_steps: PositiveInt = 1
    micro_batch_size: PositiveInt | Literal["auto"] = "auto"
    max_grad_norm: PositiveFloat | None = 1.0
    mixed_precision: Precision = "auto"
    tf32: bool = True
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    compile: bool | Literal["auto"] = "auto"
    cuda_graphs: bool = True
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
    init_from: str | None = None
    warm_up: WarmUpParams = WarmUpParams()
    freeze: FreezeParams = FreezeParams()
    lora: LoraParams = LoraParams()
    augment: AugmentParams = AugmentParams()

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _reference_flag(cls, value: object) -> object:
        """The reference's `true` and `false` mean `auto` and `none`."""
        return {True: "auto", False: "none"}.get(value, value) if isinstance(value, bool) else value

    @field_validator("micro_batch_size", mode="before")
    @classmethod
    def _null_is_auto(cls, value: object) -> object:
        """Older params files say null."""
        return "auto" if value is None else value

    @model_validator(mode="after")
    def _warm_up_trains_the_encoder(self) -> Self:
        if self.warm_up.epochs and self.freeze.vision != "none":
            raise ValueError(
                f"warm_up.epochs = {self.warm_up.epochs} trains the whole image encoder, but freeze.vision = "
                f"{self.freeze.vision}: set freeze.vision: none or warm_up.epochs: 0"
            )
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps != "auto":
            raise ValueError(f"steps = {self.steps} and epochs = {self.epochs}: give one; steps: auto, or epochs: null")
        return self

    @model_validator(mode="after")
    def _best_metric_exists(self) -> Self:
        if self.best_metric.startswith("val_ema.") and self.ema_decay is None:
            raise ValueError(f"best_metric = {self.best_metric!r} needs ema_decay, such as 0.999")
        return self


class GroundingParams(Section):
    """Heat maps of findings against their boxes.

    `images`: how many with boxes are measured at most; 0 turns it off. `window`: patches along the side of the square
    that is hidden at a time; null: a quarter of the image's side.
    """

    images: Annotated[int, Field(ge=0)] = 64
    window: PositiveInt | None = None


class EvaluateParams(Section):
    """`label_prompts`, by label, and `findings` replace those of the task; `kl_prompts` is another name of the first.

    `subgroups`: columns by which the headline metrics are also reported; auto: side, view and the task's labels.
    `robustness`: measure disturbed images too. `gallery`: queries shown on the page. `precision`: of the vision tower
    when it embeds; `auto` is fp16 on a GPU, else float32.
    """

    splits: Annotated[list[Literal["train", "val", "test"]], Field(min_length=1), AfterValidator(_distinct)] = ["test"]
    batch_size: BatchSize = 64
    label_prompts: Annotated[dict[LabelName, Prompts], ByLabel] = {}
    findings: dict[MetricName, FindingParams] | None = None
    subgroups: list[Filled] | Literal["auto"] = "auto"
    robustness: bool = True
    grounding: GroundingParams = GroundingParams()
    gallery: Annotated[int, Field(ge=0, le=100)] = 6
    precision: EmbeddingPrecision = "auto"

    def subgroup_columns(self, label_column: str) -> list[str]:
        """The columns of `subgroups`."""
        return ["side", "view", label_column] if self.subgroups == "auto" else self.subgroups

    @model_validator(mode="before")
    @classmethod
    def _knees_name(cls, value: Any) -> Any:
        """params.yaml and older checkpoints say `kl_prompts`."""
        if isinstance(value, dict) and "kl_prompts" in value and "label_prompts" not in value:
            return {"label_prompts" if key == "kl_prompts" else key: item for key, item in value.items()}
        return value


class InferParams(Section):
    """`csv_path`: a CSV with `img_path`, or the manifest (rows of `split`). Without `queries` the task's are used.

    `images`: the folder of an own CSV's images, which DVC watches. `precision`: of the vision tower, as in `evaluate`.
    """

    csv_path: Filled = "data/validated/manifest.parquet"
    images: Filled = "data/sample/images"
    split: Literal["train", "val", "test"] = "test"
    batch_size: Annotated[int, Field(gt=0, le=2**20)] = 64
    precision: EmbeddingPrecision = "auto"
    queries: list[Filled] = []


class TrackingParams(Section):
    """Where experiments are logged. Changing this section reruns nothing.

    `mlflow`: `auto` ($MLFLOW_TRACKING_URI, else SQLite in the project), a tracking URI, or `none`. `send`: what the
    trackers get: `metrics` (and params, without paths), `metrics_and_reports` (also tables and charts of groups), `all`
    (also rows and pictures of single patients, and models); `auto` is `all` for MLflow on this machine, else `metrics`.
    `log_checkpoints`: of models, where `send` lets them out; on servers one above `upload_limit_mb` is a reference.
    `system_metrics`: the load of CPU, GPU, memory, disk and network while training runs.
    """

    project_name: Filled = "knee-siglip"
    experiment_name: Annotated[str, AfterValidator(_printable)] | None = None
    mlflow: Filled = "auto"
    wandb: Literal["offline", "online", "none"] = "offline"
    send: Literal["auto", "metrics", "metrics_and_reports", "all"] = "auto"
    log_checkpoints: Literal["copy", "reference", "none"] = "copy"
    upload_limit_mb: Annotated[float, Field(ge=0)] = 500
    system_metrics: bool = False


class Params(Section):
    """The whole of params.yaml. The defaults are the embedded default run."""

    image_size: Annotated[int, Field(ge=28, le=LARGEST_IMAGE)] = 224
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: DataParams = DataParams()
    task: TaskParams = TaskParams()
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
