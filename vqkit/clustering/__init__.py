"""Clusters of vectors: k-means and its kin, groups of codes, and how many clusters there are.

>>> from vqkit.clustering import kmeans
>>> centers = kmeans(samples, 1024).centers  # (M, D) -> (1024, D)
"""

from vqkit.clustering.balanced import assign_within_capacity as assign_within_capacity
from vqkit.clustering.balanced import balanced_kmeans as balanced_kmeans
from vqkit.clustering.balanced import residual_kmeans as residual_kmeans
from vqkit.clustering.groups import agglomerative_labels as agglomerative_labels
from vqkit.clustering.groups import balanced_labels as balanced_labels
from vqkit.clustering.groups import kmeans_labels as kmeans_labels
from vqkit.clustering.importance import importance_kmeans as importance_kmeans
from vqkit.clustering.importance import mahalanobis_start as mahalanobis_start
from vqkit.clustering.kmeans import KMeans as KMeans
from vqkit.clustering.kmeans import kmeans as kmeans
from vqkit.clustering.structural_entropy import SuggestedCodebook as SuggestedCodebook
from vqkit.clustering.structural_entropy import suggest_codebook as suggest_codebook
