"""See the scan: what a connector's scans were, replayed, drawn, compared and exported. Runs no model itself."""

from visualize.trace import Answer, Trace, View, record

__all__ = ["Answer", "Trace", "View", "record"]
