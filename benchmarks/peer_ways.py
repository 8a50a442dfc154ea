"""The peers' ways to train on what `training_ways.Work` names, each with the fastest number of DataLoader workers."""

import copy
import itertools
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip_training import OpenClipTraining
from peers import open_clip
from PIL import Image
from sizes import open_clip_config, parameter_count, siglip_config
from torch.utils.data import Dataset
from training_ways import CPU, Epoch, Kind, Work, small_tokenizer

from knee_siglip.tables.text import tokenize
from knee_siglip.training.throughput import peak_memory_mb

WORKERS = (0, 1, 2)


class Peer:
    """What the peers have in common: texts as token ids of this project's tokenizer, and a number of workers."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.tokenizer = small_tokenizer()
        self.facts: dict[str, Any] = {}
        texts = work.table("trial")["text"].tolist()
        ours = tokenize(self.tokenizer, texts, work.sizes.positions)
        assert torch.equal(self.token_ids(texts), ours), "the peers would train on other tokens"

    def choose_workers(self, seconds_of: Callable[[int], float]) -> int:
        """The fastest number; `seconds_of` trains the trial with so many. The first one is warmed up before."""
        seconds_of(WORKERS[0])
        seconds = {workers: seconds_of(workers) for workers in WORKERS}
        self.facts["seconds_of_trial"] = seconds
        self.facts["workers"] = min(seconds, key=lambda workers: seconds[workers])
        return int(self.facts["workers"])

    def token_ids(self, texts: Sequence[str]) -> torch.Tensor:
        """(N, positions). The manifest's texts are normalised, so the peers are spared what `tokenize` does first."""
        length = self.work.sizes.positions
        filled = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        ids: torch.Tensor = self.tokenizer(list(texts), **filled)["input_ids"]
        return ids


class OpenClipWay(Peer):
    """open_clip_train's CSV data set with open_clip's own preprocessing, and its `train_one_epoch`."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        warnings.filterwarnings("ignore", "'pin_memory' argument is set as true but no accelerator")
        torch.manual_seed(0)
        model = open_clip().CustomTextCLIP(**open_clip_config(work.sizes), output_dict=True)
        self.facts["parameters"] = parameter_count(model)
        self.training = OpenClipTraining(model, work.batch_size, CPU, "fp32")
        self.transform = open_clip().image_transform(work.sizes.image_size, is_train=True)
        self.folder = tempfile.TemporaryDirectory()
        self.workers = self.choose_workers(lambda workers: self._train("trial", workers).seconds)

    def epoch(self, kind: Kind) -> Epoch:
        """With the chosen number of workers."""
        return self._train(kind, self.workers)

    def _train(self, kind: Kind, workers: int) -> Epoch:
        data = self._data(kind, workers)
        started = time.perf_counter()
        self.training.epoch(data)
        return Epoch(time.perf_counter() - started, len(self.work.table(kind)), peak_memory_mb())

    def _data(self, kind: Kind, workers: int) -> Any:
        csv = Path(self.folder.name) / f"{kind}.csv"
        self.work.table(kind).to_csv(csv, index=False)
        args = copy.copy(self.training.args)
        args.train_data, args.csv_separator, args.workers = str(csv), ",", workers
        args.csv_img_key, args.csv_caption_key = "image_file", "text"
        return open_clip("open_clip_train.data").get_csv_dataset(
            args, self.transform, is_train=True, tokenizer=self.token_ids
        )


class Pairs(Dataset[dict[str, Any]]):
    """Opens a file with Pillow and prepares it with transformers' own SigLIP processor; texts are tokenised before."""

    def __init__(self, files: Sequence[str], input_ids: torch.Tensor, image_size: int) -> None:
        from transformers import SiglipImageProcessor

        self.files, self.input_ids = files, input_ids
        self.processor: Any = SiglipImageProcessor(size={"height": image_size, "width": image_size})

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """pixel_values (3, S, S), input_ids (L,)."""
        with Image.open(self.files[index]) as image:
            pixels = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "input_ids": self.input_ids[index]}


class HuggingFaceWay(Peer):
    """transformers' SiglipModel and Trainer."""

    def __init__(self, work: Work) -> None:
        from transformers import SiglipModel

        super().__init__(work)
        torch.manual_seed(0)
        self.model = SiglipModel(siglip_config(work.sizes))
        self.facts["parameters"] = parameter_count(self.model)
        self.folder = tempfile.TemporaryDirectory()
        self.workers = self.choose_workers(lambda workers: self._train("trial", workers).seconds)

    def epoch(self, kind: Kind) -> Epoch:
        """With the chosen number of workers."""
        return self._train(kind, self.workers)

    def _train(self, kind: Kind, workers: int) -> Epoch:
        table = self.work.table(kind)
        pairs = Pairs(table["image_file"].tolist(), self.token_ids(table["text"].tolist()), self.work.sizes.image_size)
        seconds = hugging_face_epoch(self.model, pairs, self.work.batch_size, workers, self.folder.name)
        return Epoch(seconds, len(pairs), peak_memory_mb())


def hugging_face_epoch(model: Any, pairs: Pairs, batch_size: int, workers: int, folder: str) -> float:
    """Seconds of one epoch of transformers.Trainer, from its first batch to its last step."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    moments: list[float] = []

    class Clock(TrainerCallback):
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            moments.append(time.perf_counter())

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            moments.append(time.perf_counter())

    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=batch_size,
        num_train_epochs=1,
        learning_rate=1e-4,
        weight_decay=0.01,
        use_cpu=True,
        dataloader_num_workers=workers,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=pairs, data_collator=collated, callbacks=[Clock()])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return next(end - start for start, end in itertools.pairwise(moments))


def collated(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What SiglipModel takes, from what `Pairs` gives."""
    batch = {name: torch.stack([row[name] for row in rows]) for name in ("pixel_values", "input_ids")}
    return batch | {"return_loss": True}
