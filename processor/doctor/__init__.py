"""What can be wrong between a daemon and its project, looked at before it matters."""

from processor.doctor.examination import examine
from processor.doctor.finding import Finding, Mark

__all__ = ["Finding", "Mark", "examine"]
