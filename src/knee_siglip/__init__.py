"""Match knee radiographs with radiology impressions: RAD-DINO image encoder, SigLIP text encoder, sigmoid loss."""

__version__ = "0.1.0"
