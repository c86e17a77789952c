"""The speed layer: chains of epochs above a horizon.

Imports `domain`, `fold`, `storage` and `runtime`, and no other layer.
"""
