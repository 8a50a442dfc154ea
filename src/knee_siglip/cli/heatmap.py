"""The command `knee-siglip map`: where in a radiograph the model sees a phrase.

knee-siglip map --model_path models/best_model.pt --image_path knee.png --phrase "Joint effusion of left knee joint."
knee-siglip map ... --phrase "Severe OA of left knee joint." --method gradient --output_path severe.jpg
"""

from pathlib import Path
from typing import Annotated

import typer

from knee_siglip.core.errors import UsageError
from knee_siglip.tables.text import normalise_text

# torch and transformers are imported inside the functions: `--help` must not wait for them.

AGAINST = "Normal knee joint."
SUFFIXES = (".jpg", ".jpeg")


def draw_map(
    model_path: Annotated[Path, typer.Option("--model_path", help="A checkpoint, such as models/best_model.pt.")],
    image_path: Annotated[Path, typer.Option("--image_path", help="One radiograph.")],
    phrase: Annotated[str, typer.Option("--phrase", help="What to look for.")],
    against: Annotated[
        str, typer.Option("--against", help="A text without it; the map shows what speaks for the one over the other.")
    ] = AGAINST,
    method: Annotated[
        str, typer.Option("--method", help="occlusion, gradient or raw: see docs/metrics.md.")
    ] = "occlusion",
    output_path: Annotated[
        Path, typer.Option("--output_path", help="A JPEG: the image, and beside it the image under the map.")
    ] = Path("map.jpg"),
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")] = "auto",
) -> None:
    """Draw where in one image the model sees a phrase: a look at the model, not at the patient."""
    if output_path.suffix.lower() not in SUFFIXES or not output_path.absolute().parent.is_dir():
        raise UsageError(f"--output_path {output_path}: name a .jpg in a folder that exists")
    normal = [normalise_text(text) for text in (phrase, against)]
    if not all(normal) or normal[0] == normal[1]:
        raise UsageError("--phrase and --against must be texts, and not the same one")
    output_path.write_bytes(_overlay(model_path, image_path, (phrase, against), method, device))
    typer.echo(f"{output_path}: the image as the model sees it, and under the map of {phrase!r} against {against!r}")


def _overlay(model_path: Path, image_path: Path, texts: tuple[str, str], method: str, device: str) -> bytes:
    import numpy as np
    import torch

    from knee_siglip.explain.maps import METHODS, phrase_maps
    from knee_siglip.explain.overlays import draw_overlay, enlarge
    from knee_siglip.imaging.fit.transform import load_pixels
    from knee_siglip.model.checkpoint import load_checkpoint
    from knee_siglip.model.device import pick_device
    from knee_siglip.model.embedding import embed_texts

    if method not in METHODS:
        raise UsageError(f"--method {method}: there are {', '.join(METHODS)}")
    checkpoint = load_checkpoint(model_path, device=pick_device(device))
    pixels = load_pixels(image_path, checkpoint.transform)
    phrase, against = torch.from_numpy(embed_texts(checkpoint, texts)).to(checkpoint.model.device)
    images = torch.from_numpy(pixels[None]).to(checkpoint.model.device)
    (maps,) = phrase_maps(checkpoint.model, images, [(phrase - against)[None]], method)
    return draw_overlay(pixels, enlarge(maps[0].cpu().numpy(), len(pixels)), np.zeros((0, 4)))
