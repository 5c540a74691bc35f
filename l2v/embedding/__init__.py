"""Bulk embedding: files of texts to Parquet shards of vectors."""

from l2v.embedding.shards import read_vectors

__all__ = ["read_vectors"]
