"""Benchmarks: rate-distortion and speed beside other codecs, and the report of them.

Data flows one way: `pictures` and `codecs` are measured by `rd` into `rows` (JSON lines); `results` turns rows into
curves; `bd`, `plots`, `report` and `readme` only read those. `speed` stands alone.
"""
