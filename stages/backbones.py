"""python stages/backbones.py

Reads `model` of params.yaml; brings both encoders to models/backbones/{vision,text}/ in Hugging Face format: the small
ones that ship with the project, a local folder's, or a hub repository's at a pinned commit.
"""

from knee_siglip.core.paths import BACKBONES, PARAMS
from knee_siglip.core.running import run_stage
from knee_siglip.params.checks import check_divisible, vision_patch_size
from knee_siglip.params.files import load_params


def main() -> None:
    """Write the encoders; only now is every encoder's patch size known, so image_size is checked again."""
    params = load_params()
    from knee_siglip.encoders.backbones import write_backbones

    write_backbones(params.model, BACKBONES)
    if patch := vision_patch_size(str(BACKBONES / "vision")):
        check_divisible(params.image_size, patch, str(PARAMS))


if __name__ == "__main__":
    run_stage(main)
