"""One page that shows the results of a run."""

from trak_lightning.report.samples import Samples
from trak_lightning.report.shown import Shown
from trak_lightning.report.write import write_report

__all__ = ["Samples", "Shown", "write_report"]
