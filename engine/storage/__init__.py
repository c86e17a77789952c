"""What lies on HDFS and is committed by rename: segments, epochs, versions, checkpoints; and whether Kafka continues them.

Imports `domain`, `fold` and `runtime`; knows no layer.
"""
