"""Data sets: kept as they were stored, brought into the shape of a model's inputs batch by batch on the device."""

from experiments.data.dataset import Augmentation, Dataset
from experiments.data.images import mnist5k, stored
from experiments.data.sequences import adding, pixel_by_pixel
from experiments.data.text import sources

__all__ = ["Augmentation", "Dataset", "adding", "mnist5k", "pixel_by_pixel", "sources", "stored"]
