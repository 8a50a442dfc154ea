"""python benchmarks/batch_inference.py [--only peers scale kills] [--rows N ...] [--peer_rows N] [--output FILE]

Batch inference of the default run's model over its 512 px PNGs (paths repeat; the files are in the page cache):
`peers`: images/s after start-up, alone and beside a busy process, against Hugging Face's own models with the same
weights in a plain loop (Pillow, DataLoader with two workers) and in `pipeline("image-feature-extraction")`;
`scale`: seconds and peak memory by rows; `kills`: kill -9 three times, then the same bytes as undisturbed.
Run it after `dvc repro`. Prints target beside figure; exits 1 when one is missed.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from claims import Claim, conclude

MODEL, IMAGES = Path("models/best_model.pt"), Path("data/sample/images")
BATCH_SIZE, WORKERS, KILLS = 64, 2, 3
NAMES = ("results.csv", "embeddings.npy", "embedding_ids.csv")


def write_table(folder: Path, rows: int) -> Path:
    """A CSV of so many rows."""
    files = sorted(IMAGES.absolute().glob("*.png"))
    path = folder / f"{rows}.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["img_path"], *([name] for name in islice(cycle(files), rows))])
    return path


def start(table: Path, folder: Path) -> subprocess.Popen[bytes]:
    """`knee-siglip infer` over the table, into the folder."""
    folder.mkdir(exist_ok=True)
    command = ["knee-siglip", "infer", "--model_path", str(MODEL), "--csv_path", str(table), "--json"]
    command += ["--batch_size", str(BATCH_SIZE), "--output_path", str(folder / "results.csv")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def finish(process: subprocess.Popen[bytes]) -> tuple[dict[str, Any], float]:
    """What it printed, and its peak memory in MB."""
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"knee-siglip infer ended with {process.returncode}")
    return json.loads(printed), usage.ru_maxrss / 1024


@contextmanager
def busy_process() -> Iterator[None]:
    """Another process that never rests."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def peer(way: str, table: Path) -> float:
    """Images/s of a peer, in a process of its own."""
    command = [sys.executable, __file__, "--peer", way, "--table", str(table)]
    # The peers get torch's own way of waiting, as their users have it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return float(done.stdout.split()[-1])


def run_peer(way: str, table: Path) -> None:
    """In the peer's process: the same vision weights as a `Dinov2Model`; prints images/s."""
    import torch
    from transformers import BitImageProcessorPil, Dinov2Model

    from knee_siglip.model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(MODEL)
    size, config = checkpoint.image_size, checkpoint.model.config
    processor = BitImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=config.image_mean,
        image_std=config.image_std,
    )
    with table.open(newline="") as file:
        files = [row["img_path"] for row in csv.DictReader(file)]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.model.vision_model.save_pretrained(Path(folder))
        model = Dinov2Model.from_pretrained(folder).eval()
    ways: dict[str, Callable[..., None]] = {"loop": plain_loop, "pipeline": feature_pipeline}
    with torch.inference_mode():
        started = time.perf_counter()
        ways[way](model, processor, files, checkpoint.model.visual_projection)
    print(len(files) / (time.perf_counter() - started))


def plain_loop(model: Any, processor: Any, files: list[str], projection: Any) -> None:
    """Pillow and a DataLoader with two workers."""
    import torch
    from PIL import Image
    from torch.nn import functional as F

    class Files(torch.utils.data.Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> torch.Tensor:
            with Image.open(files[index]) as image:
                pixels: torch.Tensor = processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
            return pixels

    loader = torch.utils.data.DataLoader(Files(), BATCH_SIZE, num_workers=WORKERS)
    embeds = [F.normalize(projection(model(pixels).last_hidden_state[:, 0]), dim=-1) for pixels in loader]
    assert len(torch.cat(embeds)) == len(files)


def feature_pipeline(model: Any, processor: Any, files: list[str], projection: Any) -> None:
    """transformers' own pipeline; it gives every token, of which the first is projected."""
    import torch
    from transformers import pipeline

    extract = pipeline("image-feature-extraction", model=model, image_processor=processor, framework="pt")
    for tokens in extract(files, batch_size=BATCH_SIZE, return_tensors=True):
        projection(torch.as_tensor(tokens)[:, 0])


def measure_peers(rows: int, folder: Path) -> tuple[list[Claim], dict[str, Any]]:
    """Ours, the loop and the pipeline, in turns."""
    table, facts, claims = write_table(folder, rows), {}, []
    finish(start(table, folder / "warm"))
    for name in ("alone", "busy"):
        with busy_process() if name == "busy" else tempfile.TemporaryDirectory():
            ours = finish(start(table, folder / name))[0]["images_per_second"]
            others = {way: peer(way, table) for way in ("loop", "pipeline")}
        facts[name] = {"ours": ours, **others}
        print(name, facts[name], flush=True)
        claims += [
            Claim(f"{name}: images/s / Hugging Face's {way}", ours / rate, ">=", 3) for way, rate in others.items()
        ]
    return claims, facts


def measure_scale(sizes: list[int], folder: Path) -> tuple[list[Claim], dict[str, Any]]:
    """Seconds and memory by rows."""
    facts: dict[str, Any] = {}
    for rows in sizes:
        started = time.perf_counter()
        printed, memory = finish(start(write_table(folder, rows), folder / f"scale{rows}"))
        seconds = time.perf_counter() - started
        facts[str(rows)] = {"seconds": seconds, "images_per_second": printed["images_per_second"], "peak_mb": memory}
        print(rows, facts[str(rows)], flush=True)
    growth = facts[str(sizes[-1])]["peak_mb"] / facts[str(sizes[0])]["peak_mb"]
    return [Claim(f"peak memory at {sizes[-1]} / {sizes[0]} rows", growth, "<=", 1.1)], facts


def rows_done(folder: Path) -> int:
    """By the journal of an unfinished run."""
    try:
        lines = (folder / "results.csv.partial/0-of-1/journal.jsonl").read_text().split("\n")
        return int(json.loads(lines[-2])["rows"])
    except (OSError, ValueError, IndexError):
        return 0


def measure_kills(rows: int, folder: Path) -> tuple[list[Claim], dict[str, Any]]:
    """Kill -9 at a quarter, a half and three quarters, then let it end."""
    table, whole, killed = write_table(folder, rows), folder / "whole", folder / "killed"
    finish(start(table, whole))
    at = []
    for number in range(1, KILLS + 1):
        process = start(table, killed)
        while process.poll() is None and rows_done(killed) < rows * number // (KILLS + 1):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        at.append(rows_done(killed))
    printed, _ = finish(start(table, killed))
    computed = round(printed["images_per_second"] * printed["seconds"])
    again = max(0, computed - (rows - at[-1]))
    differing = sum((whole / name).read_bytes() != (killed / name).read_bytes() for name in NAMES)
    facts = {"rows": rows, "killed_at": at, "computed_at_last": computed}
    return [
        Claim("files that differ after three kills", differing, "<=", 0),
        Claim("journalled rows computed again", again, "<=", np.ceil(0.01 * rows)),  # the printed rate is rounded
    ], facts


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("peers", "scale", "kills"), default=["peers", "scale", "kills"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 50_000])
    parser.add_argument("--peer_rows", type=int, default=4000)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--peer", choices=("loop", "pipeline"), help=argparse.SUPPRESS)
    parser.add_argument("--table", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        run_peer(args.peer, args.table)
        return
    if not MODEL.exists():
        raise SystemExit("run dvc repro first")
    claims: list[Claim] = []
    facts: dict[str, Any] = {"load": os.getloadavg()}
    with tempfile.TemporaryDirectory() as name:
        parts = {
            "peers": lambda: measure_peers(args.peer_rows, Path(name)),
            "scale": lambda: measure_scale(args.rows, Path(name)),
            "kills": lambda: measure_kills(args.rows[0], Path(name)),
        }
        for part in args.only:
            found, facts[part] = parts[part]()
            claims += found
    conclude(claims, facts, args.output, "torch", "transformers", "pillow")


if __name__ == "__main__":
    main()
