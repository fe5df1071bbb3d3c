"""Model families, one file each; importing this package registers all of them."""

from anytime.models import ann as ann
from anytime.models import ann_imagenet as ann_imagenet
from anytime.models import anytimenet as anytimenet
from anytime.models import attach as attach
from anytime.models import cascaded as cascaded
from anytime.models import delayed as delayed
from anytime.models import delays as delays
from anytime.models import densenet as densenet
from anytime.models import eann as eann
from anytime.models import isresnext as isresnext
from anytime.models import resnext as resnext
from anytime.models import serial as serial

__all__ = [
    "ann",
    "ann_imagenet",
    "anytimenet",
    "attach",
    "cascaded",
    "delayed",
    "delays",
    "densenet",
    "eann",
    "isresnext",
    "resnext",
    "serial",
]
