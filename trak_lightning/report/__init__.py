"""One page that shows a run to people who would rather look than read."""

from trak_lightning.report.samples import Samples, Shown
from trak_lightning.report.write import write_report

__all__ = ["Samples", "Shown", "write_report"]
