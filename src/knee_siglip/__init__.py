"""Match knee radiographs with radiology impressions: RAD-DINO image encoder, SigLIP text encoder, sigmoid loss."""

from knee_siglip.core.threads import set_up_threads

__version__ = "0.1.0"

set_up_threads()
