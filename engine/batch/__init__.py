"""The batch layer: types the raw log, chooses the horizon, builds versions.

Imports `domain`, `fold`, `storage`, `runtime`.
"""
