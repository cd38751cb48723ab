"""Benchmarks: rate-distortion and speed beside other codecs, and the report of them.

Data flows one way: `pictures` and `codecs` (networks among them are in `learned`, what all have in common in
`protocol`) are measured by `rd` with `metrics` and `memory` into `rows` (JSON lines), `machine` says where; `results`
turns rows into curves; `bd`, `plots`, `report`, `readme` and `published` only read those, beside the published ones of
`anchors`. `speed`, `effort` and `sheet` stand alone, and so do modules with a command of their own: `targets`,
`folder`, `large`, `gpu`, `kernels` and `determinism`.
"""
