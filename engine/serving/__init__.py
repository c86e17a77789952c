"""The serving layer: snapshots of version and epochs, queries, replies, and a store for replicas.

`answers` has a function per route and `service` what all requests share. Whether an answer is complete, and how old it
is, `watch` says. With SERVING_STORE=cassandra snapshots come from `replica`, out of the `store` that `materialise`
fills; `cassandra` knows its verbs. All else reads HDFS: `snapshot`, `epochs`, `tail`.

Imports `domain`, `fold`, `storage` and `runtime`, and no other layer.
"""
