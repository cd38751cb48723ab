"""The report: one HTML page that needs no network, PNG plots, a Markdown table and CompressAI's JSON files."""

from mcodec.bench.report.files import write
from mcodec.bench.report.page import render

__all__ = ["render", "write"]
