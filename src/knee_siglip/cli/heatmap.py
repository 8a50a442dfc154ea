"""The command `knee-siglip map`: where in a radiograph the model sees a phrase.

knee-siglip map --model_path models/best_model.pt --image_path knee.png --phrase "Joint effusion of left knee joint."
knee-siglip map ... --phrase "Severe OA of left knee joint." --method gradient --output_path severe.jpg
"""

from pathlib import Path
from typing import Annotated

import typer

from knee_siglip.core.cells import echo
from knee_siglip.core.errors import UsageError
from knee_siglip.core.files import atomic_file, sole_writer

# torch and transformers are imported inside the functions: `--help` must not wait for them.

SUFFIXES = (".jpg", ".jpeg")


def draw_map(
    model_path: Annotated[Path, typer.Option("--model_path", help="A checkpoint, such as models/best_model.pt.")],
    image_path: Annotated[Path, typer.Option("--image_path", help="One radiograph.")],
    phrase: Annotated[str, typer.Option("--phrase", help="What to look for.")],
    against: Annotated[
        str | None,
        typer.Option("--against", help="A text without it, such as the default, the task's normal image."),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="occlusion, gradient or raw: see docs/metrics.md.")
    ] = "occlusion",
    output_path: Annotated[
        Path, typer.Option("--output_path", help="A JPEG: the image, and beside it the image under the map.")
    ] = Path("map.jpg"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")] = "auto",
) -> None:
    """Draw where in one image the model sees a phrase: a look at the model, not at the patient."""
    if output_path.suffix.lower() not in SUFFIXES or not output_path.absolute().parent.is_dir():
        raise UsageError(f"--output_path {output_path}: name a .jpg in a folder that exists")
    from knee_siglip.imaging.appearance import read_with_warnings
    from knee_siglip.serve.model import check_question, load

    check_question(phrase, against, method)
    with sole_writer(output_path):
        if output_path.exists() and not overwrite:
            raise UsageError(f"{output_path} exists; name another --output_path or add --overwrite")
        model = load(model_path, device=device)
        image, _ = read_with_warnings(image_path)
        against = model.normal if against is None else against
        explanation = model.explain(image.grey, phrase, against, method)
        with atomic_file(output_path) as file:
            file.write(explanation.overlay())
    echo(f"{output_path}: the image as the model sees it, and under the map of {phrase!r} against {against!r}")
    if explanation.missing:
        echo(f"Not found: {explanation.missing}")
    else:
        echo(f"Strongest place: {explanation.heat.max():.2f} {explanation.scale.unit}")
    echo(f"Caution: {'; '.join(explanation.cautions)}")
