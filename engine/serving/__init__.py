"""The serving layer: snapshots of version and epochs, queries, replies, and a store for replicas.

Imports `domain`, `fold`, `storage` and `runtime`, and no other layer.
"""
