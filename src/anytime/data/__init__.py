"""Data sets of images, in memory or streamed, and their loaders."""

from anytime.data.base import ImageData, Split, default_root
from anytime.data.batches import Batches, Loader
from anytime.data.datasets import Description, create_data, describe, list_datasets, resolve
from anytime.data.images import read_image
from anytime.data.sets.cars import StanfordCars
from anytime.data.sets.cifar import CIFAR10, CIFAR100
from anytime.data.sets.cub200 import CUB200
from anytime.data.sets.digits import Digits
from anytime.data.sets.folders import ImageFolder
from anytime.data.sets.gtsrb import GTSRB
from anytime.data.sets.imagenet import ImageNet
from anytime.data.sets.lsun import LSUN
from anytime.data.sets.mnist import MNIST, FashionMNIST
from anytime.data.sets.svhn import SVHN
from anytime.data.sets.tinyimagenet import TinyImageNet
from anytime.data.stream import LazyImages, StreamedBatches

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "CUB200",
    "GTSRB",
    "LSUN",
    "MNIST",
    "SVHN",
    "Batches",
    "Description",
    "Digits",
    "FashionMNIST",
    "ImageData",
    "ImageFolder",
    "ImageNet",
    "LazyImages",
    "Loader",
    "Split",
    "StanfordCars",
    "StreamedBatches",
    "TinyImageNet",
    "create_data",
    "default_root",
    "describe",
    "list_datasets",
    "read_image",
    "resolve",
]
