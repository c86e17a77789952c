"""Gets data out as files, `python -m engine.export`.

Imports `domain`, `fold`, `storage` and `runtime`, and no layer.
"""
