"""The numbers that Iuzzolino et al. (2021) published."""

from __future__ import annotations

PAPER = (
    "Iuzzolino, Mozer, Bengio, Improving Anytime Prediction with Parallel Cascaded Networks and a Temporal-Difference Loss, "
    "NeurIPS 2021"
)
CURVES_SOURCE = "figure 4, read off the drawing to about 0.3 %; width 64, 120 epochs, answers at t = 0..8"
CURVES: dict[str, dict[str, list[float]]] = {  # per cent at mean stop times 1..8
    "cifar10": {
        "CascadedTD": [10.7, 48.4, 78.0, 91.2, 91.6, 91.6, 91.6, 91.6],
        "CascadedTD-MultiHead": [10.7, 39.7, 69.6, 83.8, 89.5, 89.7, 89.9, 90.1],
        "CascadedCE": [10.1, 10.1, 10.3, 11, 34, 62, 77.8, 91.8],
        "SerialTD": [16.9, 37.0, 59.0, 73.8, 83.5, 87.1, 87.1, 87.4],
        "SerialTD-MultiHead": [11.8, 34.2, 59, 80.9, 90.2, 90.3, 90.6, 90.7],
        "SerialCE": [10, 10, 10, 22, 55.8, 77.6, 91.2, 91.8],
    },
    "cifar100": {
        "CascadedTD": [2.9, 23.8, 49.6, 60.3, 63.7, 64.8, 64.9, 64.9],
        "CascadedTD-MultiHead": [1.6, 20.5, 36.6, 50.2, 60.3, 64.5, 64.8, 64.8],
        "CascadedCE": [1.1, 1.2, 2.8, 13.7, 27.0, 44.7, 60.6, 65.9],
        "SerialTD": [2.2, 12.3, 21.4, 30.7, 39.9, 49.0, 57.7, 59.3],
        "SerialTD-MultiHead": [2, 12.8, 28.6, 42.6, 54, 59.7, 60.3, 60.2],
        "SerialCE": [1, 1, 1, 1, 1, 1, 66.0, 65.9],
    },
    "tinyimagenet": {
        "CascadedTD": [1.2, 14.8, 26.8, 36.1, 43.6, 49.4, 53.9, 55.0],
        "CascadedTD-MultiHead": [1.1, 13.3, 23.0, 31.1, 39.0, 45.9, 51.4, 53.1],
        "CascadedCE": [0.6, 0.6, 0.7, 8.0, 15.4, 23, 41.5, 56.0],
        "SerialTD": [1.8, 11.5, 21.3, 30.6, 38.3, 43.9, 45.7, 44.8],
        "SerialTD-MultiHead": [1.5, 10.2, 19.3, 26.9, 33.6, 40.3, 46, 49.8],
        "SerialCE": [0.5, 0.5, 0.5, 0.5, 1, 5.0, 52, 56],
    },
}
BY_LAMBDA_SOURCE = {
    "cifar10": "figure 4, read off the drawing, lambda = 0 alone",
    "cifar100": "the published code's notebook, one seed, lr 0.01, weight decay 5e-4 for lambda 0 and 1, else 1e-3",
    "tinyimagenet": "figure 4, read off the drawing, lambda = 0 alone",
    "terriers": "the published code's figure, one seed",
}
BY_LAMBDA: dict[str, dict[float, float]] = {  # accuracy at t = 8
    "cifar10": {0.0: 0.916},
    "cifar100": {0.0: 0.6309, 0.25: 0.6493, 0.5: 0.6335, 0.9: 0.6223, 1.0: 0.5814},
    "tinyimagenet": {0.0: 0.55},
    "terriers": {
        0.0: 0.672,
        0.1: 0.679,
        0.25: 0.682,
        0.5: 0.685,
        0.55: 0.691,
        0.75: 0.675,
        0.83: 0.668,
        0.9: 0.659,
        1.0: 0.632,
    },
}
TYPICALITY = {  # table 1, Spearman's rho of CascadedCE and CascadedTD; 10 folds, threshold 0.83
    "centrality": (0.140, 0.352),
    "C-score": (0.326, 0.489),
    "human consistency": (0.153, 0.142),
}
NOISES = {  # table 2: persistent accuracy and transient drop in per cent, of SerialCE x 9, CascadedCE and CascadedTD
    "focus": ((84.27, 83.75, 87.31), (0.62, 0.66, 0.00)),
    "occlusion": ((86.26, 82.73, 89.76), (7.70, 8.25, 0.93)),
    "perlin": ((85.18, 84.56, 87.67), (0.86, 0.87, 0.00)),
    "resolution": ((84.53, 85.40, 88.19), (0.81, 0.53, 0.18)),
}
