"""Synthetic AP knee radiographs with impressions, KL grades and finding boxes: the data a fresh clone runs on."""
