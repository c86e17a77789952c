"""The oracle, `python -m engine.verify`: recounts every answer from the raw log by code of its own.

Imports `domain` and `runtime.settings` alone, so that no fault of a layer hides in it.
"""
