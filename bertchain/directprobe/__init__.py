"""DirectProbe: how labels lie among features, without a classifier (Zhou & Srikumar 2021).

    from bertchain.directprobe import cluster

    found = cluster(features, labels)

Arrays in, arrays out: works without the rest of the package.
"""

from bertchain.directprobe.clustering import (
    Clustering,
    centroid_distances,
    centroids,
    cluster,
    few_point_pairs,
    hull_distances,
    pairs_apart,
    spatial_similarity,
    spread,
)
from bertchain.directprobe.hulls import Contact, do_meet, hull_distance
from bertchain.directprobe.prediction import predict

__all__ = [
    "Clustering",
    "Contact",
    "centroid_distances",
    "centroids",
    "cluster",
    "do_meet",
    "few_point_pairs",
    "hull_distance",
    "hull_distances",
    "pairs_apart",
    "predict",
    "spatial_similarity",
    "spread",
]
