"""What a run cost, machine by machine: rows, tables, plots and a page."""

from nearbank.report.report import Report, Section
from nearbank.report.row import MachineRow, energy_ratio, speedup

__all__ = ["MachineRow", "Report", "Section", "energy_ratio", "speedup"]
