"""The paper's claims at small scale, on the demo's data set: `make claims`, or one of them by
`python -m benchmarks.claims.NAME root=runs/demo`.

NAME is inflation, conditioning, losses, tasks or decoding. What came out: docs/claims.md.
"""
