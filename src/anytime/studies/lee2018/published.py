"""The numbers that Lee and Shin (2018) published."""

from __future__ import annotations

PAPER = "Lee, Shin, Anytime Neural Prediction via Slicing Networks Vertically, 2018"

ERRORS = {  # shares; those of shared batch norm and of the last two follow from stated differences
    "cifar10": {
        "independent": {"thinnest": 0.129, "full": 0.072},
        "shared": {"thinnest": 0.705, "full": 0.0896},
        "reduction": {"thinnest": 0.817, "full": 0.196},
        "shallow alone": {"shallowest": 0.199},
        "shallow jointly": {"shallowest": 0.250},
        "thin alone": {"thinnest": 0.117},
        "largest loss": {"thin": 0.012, "shallow": 0.051},
    }
}
ERRORS_SOURCE = "section 4.1: 29 layers, W = 64, 8 sub-networks, 300 epochs, mean of 5 trials; the figure has no table"
AGAINST_MSDNET = {  # I-ResNeXt of 65 layers, IS-ResNeXt of 47
    "cifar10": {"full error smaller": 0.107, "MACs saved, up to": 0.560, "thinnest IS to shallowest": 0.172},
    "cifar100": {"full error smaller": 0.058, "MACs saved, up to": 0.487, "thinnest IS to shallowest": 0.121},
}
CUB = {"class alone": 0.312, "level chosen": 0.475}
CUB_SOURCE = "section 4.3, worst accuracy of any sub-network on CUB-200 with 4 levels; CIFAR-100 has no numbers"
