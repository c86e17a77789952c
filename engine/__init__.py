"""The library of the scripts, in packages named after the architecture; each says what it may import.

domain ← fold ← storage ← ingest, batch, speed, serving, export (of these five none imports another); runtime stands on
domain, produce on domain and runtime; verify shares declarations and settings alone. On top are programs:
`python -m engine.export`, `.materialise`, `.prepare`, `.settings`, `.verify`, `.versions`.
"""
