"""The arithmetic and the storage rules of all layers, in packages named after the architecture; each says what it may import.

domain ← fold ← storage ← ingest, batch, speed, serving, export (of which none imports another); runtime and produce stand on
domain; verify shares declarations and settings alone. On top are programs: `python -m engine.export`, `.materialise`,
`.prepare`, `.settings`, `.verify`, `.versions`.
"""
