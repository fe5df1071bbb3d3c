"""Data sets of images, in memory or streamed, and their loaders."""

from anytime.data.batches import Batches, Loader
from anytime.data.cars import StanfordCars
from anytime.data.cifar import CIFAR10, CIFAR100
from anytime.data.datasets import Description, create_data, describe, list_datasets, resolve
from anytime.data.digits import Digits
from anytime.data.folders import CUB200, ImageFolder, ImageNet
from anytime.data.gtsrb import GTSRB
from anytime.data.images import read_image
from anytime.data.lsun import LSUN
from anytime.data.mnist import MNIST, FashionMNIST
from anytime.data.module import ImageData, Part, default_root
from anytime.data.stream import Files, StreamedBatches
from anytime.data.svhn import SVHN
from anytime.data.tinyimagenet import TinyImageNet

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
    "Files",
    "ImageData",
    "ImageFolder",
    "ImageNet",
    "Loader",
    "Part",
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
