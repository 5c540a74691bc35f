"""From token states to one vector a text."""

from l2v.pooling.base import Pooling
from l2v.pooling.poolings import POOLINGS, FirstToken, LastToken, Mean, PoolingName, WeightedMean, pool, pooling_name
from l2v.pooling.saving import load_pooling, load_weights, pooling_record, save_pooling

__all__ = [
    "POOLINGS",
    "FirstToken",
    "LastToken",
    "Mean",
    "Pooling",
    "PoolingName",
    "WeightedMean",
    "load_pooling",
    "load_weights",
    "pool",
    "pooling_name",
    "pooling_record",
    "save_pooling",
]
