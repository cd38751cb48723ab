"""The report: one HTML page that needs no network, PNG plots, a Markdown table and CompressAI's JSON files."""

from mcodec.bench.report.page import page
from mcodec.bench.report.write import write

__all__ = ["page", "write"]
